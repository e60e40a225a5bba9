"""What a place holds follows from its content: folders, files, files by braces, and indexes kept elsewhere."""

import errno
import gzip
import io
import os
import pickle
import shutil
import tarfile
import weakref

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import headrace as hr
from headrace.dataset.ordinary import Ordinary
from headrace.dataset.pieces import Pieces
from headrace.errors import DatasetError, OptionError, StorageError, TargetError
from headrace.formats import Shard, Shards


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path):
    for k in range(3):
        write_tar(tmp_path / f"part-{k:03d}.tar", [(f"{k}{i}.txt", f"text {k}{i}".encode()) for i in range(4)])
    return tmp_path


def keys(dataset):
    return [sample["__key__"] for sample in dataset]


def test_a_tar_is_known_by_its_content(tars):
    (tars / "part-000.tar").rename(tars / "first")
    assert keys(hr.open(tars)) == [f"{k}{i}" for k in (0, 1, 2) for i in range(4)]


def test_a_single_file_is_a_dataset(tars):
    assert keys(hr.open(tars / "part-001.tar")) == [f"1{i}" for i in range(4)]


def test_braces_name_files_in_their_order(tars):
    assert keys(hr.open(f"{tars}/part-{{000..001}}.tar")) == [f"{k}{i}" for k in (0, 1) for i in range(4)]
    assert keys(hr.open(f"{tars}/part-{{002,000}}.tar")) == [f"{k}{i}" for k in (2, 0) for i in range(4)]
    with pytest.raises(DatasetError, match=r"must lie in one folder: .* names several"):
        hr.open(f"{tars}/{{a,b}}/part-000.tar")
    with pytest.raises(OptionError, match="10,000,000 names"):
        hr.open(f"{tars}/part-{{0..99999999}}.tar")


def test_a_name_with_braces_is_a_name_first(tars):
    (tars / "part-000.tar").rename(tars / "{a,b}.tar")
    assert len(hr.open(tars / "{a,b}.tar")) == 4


def test_a_list_may_be_longer_than_a_files_name(tars):
    names = [f"{'long' * 30}-{k}.tar" for k in range(3)]
    for k, name in enumerate(names):
        (tars / f"part-{k:03d}.tar").rename(tars / name)
    assert len(hr.open(f"{tars}/{{{','.join(names)}}}")) == 12


def test_a_missing_file_of_a_list_is_said(tars):
    with pytest.raises(DatasetError, match=r"part-003\.tar.* is missing"):
        hr.open(f"{tars}/part-{{000..003}}.tar")


def test_formats_do_not_mix(tars):
    np.arange(10, dtype="<u2").tofile(tars / "tokens.uint16.bin")
    with pytest.raises(DatasetError, match=r"several formats \(tar, tokens\)"):
        hr.open(tars)


def test_text_formats_do_not_mix_either(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(DatasetError, match=r"several formats \(jsonl, csv\): put each into a folder of its own"):
        hr.open(tmp_path)
    assert [hr.open(tmp_path / name).manifest.format for name in ("a.csv", "b.jsonl")] == ["csv", "jsonl"]


EMPTY = {
    "a.jsonl": b"",
    "a.jsonl.gz": gzip.compress(b""),
    "a.csv": b"n,s\n",
    "a.csv.gz": gzip.compress(b"n,s"),
    "a.tfrecord": b"",
    "a.parquet": None,
}
ONE = {"jsonl": b'{"n": 1, "s": "x"}\n', "csv": b"n,s\n1,x\n"}


def write_one(path, rows):
    """A file with these rows; of those formats that other packages write."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([("n", pa.int64()), ("s", pa.string())])), path)
    elif path.suffix == ".tfrecord":
        hr.pack(rows, path.parent / "made", format="tfrecord")
        (path.parent / "made/shard-000000.tfrecord").rename(path)
        shutil.rmtree(path.parent / "made")
    else:
        path.write_bytes(ONE[path.suffix[1:]])


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("is_alone", [False, True])
def test_a_file_without_samples_is_a_shard_without_samples(tmp_path, name, is_alone):
    """Alone, and before and behind others, whose types it does not change."""
    names = [name] if is_alone else [name, "b." + name.split(".")[1], "c" + name[1:]]
    for one in names[::2]:
        write_one(tmp_path / one, []) if EMPTY[name] is None else (tmp_path / one).write_bytes(EMPTY[name])
    if not is_alone:
        write_one(tmp_path / names[1], [{"__key__": "b", "n": 1, "s": "x"}])
    for _ in range(2):
        ds = hr.open(tmp_path)
        assert ds.manifest.shards.samples.tolist() == ([0] if is_alone else [0, 1, 0])
        assert list(ds.manifest.shards.file) == names
        assert [one["n"] for one in ds] == ([] if is_alone else [1])
        assert is_alone or (ds.schema["n"].type, name == "a.parquet" or not ds.schema["n"].nullable) == ("int", True)
        assert ds.verify() == []
        if not (tmp_path / "headrace.json").exists():
            hr.index(tmp_path)


def test_what_is_none_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="nothing is there; check the path"):
        hr.open(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="it is empty"):
        hr.open(tmp_path)
    with pytest.raises(OptionError, match="pipe: URL is not read"):
        hr.open("pipe:cat shard.tar")


def test_indexes_may_lie_elsewhere_and_the_shards_stay_alone(tars, tmp_path_factory):
    home = tmp_path_factory.mktemp("home") / "index"
    before = {name: (tars / name).read_bytes() for name in os.listdir(tars)}
    manifest = hr.index(tars, target=home)
    assert {name: (tars / name).read_bytes() for name in os.listdir(tars)} == before
    ds = hr.open(home)
    assert (ds.manifest, ds.verify()) == (manifest, [])
    assert keys(ds) == keys(hr.open(tars))
    assert bytes(pickle.loads(pickle.dumps(ds)).lookup("12")["txt"]) == b"text 12"
    with pytest.raises(TargetError, match="holds a manifest already: choose another target"):
        hr.index(tars, target=home)


def test_indexing_holds_the_index_of_one_shard_at_a_time(tars, monkeypatch):
    """Whatever their number: what waits to be written lies in a nameless file."""
    made, most = [], 0

    def scan(self):
        nonlocal most
        for index, row in original(self):
            made.append(weakref.ref(index))
            yield index, row
            most = max(most, sum(seen() is not None for seen in made))
            del index

    original = Ordinary.scan
    monkeypatch.setattr(Ordinary, "scan", scan)
    assert len(hr.index(tars).shards) == 3
    assert (len(made), most) == (3, 1)
    assert hr.open(tars).verify() == []
    assert keys(hr.open(tars)) == [f"{k}{i}" for k in range(3) for i in range(4)]


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_nothing_is_written_beside_shards_that_do_not_go_together(tmp_path, is_elsewhere):
    for k, values in enumerate([pa.array([1, 2]), pa.array([3, 4]), pa.array(["a", "b"])]):
        pq.write_table(pa.table({"x": values}), tmp_path / f"{k}.parquet")
    target = tmp_path / "home" if is_elsewhere else None
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"in 2\.parquet the field 'x' is str, in others int"):
            hr.index(tmp_path, target=target)
    assert sorted(os.listdir(tmp_path)) == ["0.parquet", "1.parquet", "2.parquet"]


def test_a_place_that_takes_no_files_says_that_indexes_may_lie_elsewhere(tars, monkeypatch):
    def refuse(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("headrace.dataset.kept_indexes.tempfile.TemporaryFile", refuse)
    with pytest.raises(StorageError, match=r"Read-only file system; .*may lie in another folder \(target, --target\)"):
        hr.index(tars)


def test_slices_are_the_samples_one_by_one(tars):
    ds = hr.open(tars)
    every = list(ds)
    for cut in (slice(2, 9), slice(None), slice(-3, None), slice(5, 5), slice(9, 1, -3), slice(0, 12, 5), slice(3, 99)):
        assert ds[cut] == every[cut]
    assert ds[np.int64(3)] == every[3]


def test_a_relative_place_means_what_it_meant(tars, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tars.parent)
    ds = hr.open(tars.name)
    monkeypatch.chdir(tmp_path_factory.mktemp("else"))
    assert len(keys(ds)) == 12
    assert ds.url == tars.name


def row(samples, num_bytes, pieces=(), unpacked_bytes=0, name="a"):
    return Shard(f"{name}{samples}{num_bytes}", samples, num_bytes, "0" * 32, "0" * 32, pieces, unpacked_bytes)


def test_pieces_number_the_parts_that_are_read_on_their_own():
    pieces = Pieces.of(Shards.of([row(10, 1000), row(7, 90, (3, 0, 4), 700), row(0, 20), row(2, 30, (), 64)]))
    assert pieces.samples.tolist() == [10, 3, 0, 4, 0, 2]
    assert pieces.bytes.tolist() == [1000, 300, 0, 400, 20, 64]
    assert pieces.is_whole.tolist() == [False, True, True, True, False, True]
    assert pieces.largest_whole_bytes == 400
    assert [pieces.place(k) for k in range(6)] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]
    assert [pieces.find(i) for i in (0, 9, 10, 13, 16, 17, 18)] == [
        (0, 0), (0, 9), (1, 0), (3, 0), (3, 3), (5, 0), (5, 1),
    ]  # fmt: skip


def test_pieces_of_many_shards_are_arithmetic():
    pieces = Pieces.of(Shards.of([row(k % 5, 100 * k, name=f"s{k}-") for k in range(1000)]))
    assert len(pieces) == 1000
    for i in range(0, int(pieces.sample_starts[-1]), 37):
        piece, at = pieces.find(i)
        assert pieces.sample_starts[piece] + at == i
        assert at < pieces.samples[piece]


def test_indexing_does_not_write_over_other_tools_indexes(tars, tmp_path_factory):
    (tars / "part-001.tar.idx").write_text("0 512\n")
    with pytest.raises(TargetError, match=r"part-001\.tar\.idx is an index of another tool"):
        hr.index(tars)
    assert (tars / "part-001.tar.idx").read_text() == "0 512\n"
    home = tmp_path_factory.mktemp("home")
    assert hr.index(tars, target=home).samples == 12
    (tars / "part-001.tar.idx").unlink()
    hr.index(tars)
    (tars / "headrace.json").unlink()
    assert hr.index(tars).samples == 12, "our own are made anew"
