"""An opened dataset: samples by number and by key, windows, what it refuses, and that it travels light."""

import io
import pickle
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import headrace as hr
from headrace.dataset import dataset as dataset_module
from headrace.dataset import indexes as indexes_module
from headrace.errors import DamagedError, DatasetError, ManifestError, OptionError, TargetError


@pytest.fixture
def texts(tmp_path):
    """A packed dataset of 40 samples in several shards."""
    samples = ({"__key__": f"k{i:02d}", "txt": f"text {i}", "cls": i} for i in range(40))
    hr.pack(samples, tmp_path / "texts", shard_size=12_000, shuffle=False)
    return tmp_path / "texts"


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_samples_by_number_from_both_ends(texts):
    ds = hr.open(texts)
    assert len(ds) == 40
    assert len(ds.manifest.shards) > 3
    assert [bytes(ds[i]["txt"]) for i in range(40)] == [f"text {i}".encode() for i in range(40)]
    assert ds[-1]["__key__"] == "k39"
    assert sum(1 for _ in ds) == 40
    for beyond in (40, -41):
        with pytest.raises(IndexError, match="of a dataset of 40"):
            ds[beyond]


def test_samples_by_key(texts):
    ds = hr.open(str(texts))
    assert bytes(ds.lookup("k17")["cls"]) == b"17"
    with pytest.raises(KeyError, match="no sample has the key 'k99'"):
        ds.lookup("k99")


def test_a_dataset_describes_itself(texts):
    ds = hr.open(texts)
    assert set(ds.schema) == {"txt", "cls"}
    assert ds.schema["txt"].type == "bytes"
    assert ds.fingerprint == ds.manifest.fingerprint
    assert repr(ds) == f"Dataset({str(texts)!r}, format='tar', samples=40)"
    assert int(ds.pieces.bytes.sum()) == ds.manifest.bytes
    assert [ds.piece(k).num_samples for k in range(len(ds.pieces))] == ds.pieces.samples.tolist()


def test_a_dataset_pickles_small_and_works_on_the_other_side(texts):
    ds = hr.open(texts)
    before = len(pickle.dumps(ds))
    list(ds)
    ds.lookup("k01")
    data = pickle.dumps(ds)
    assert len(data) == before < 3000
    assert bytes(pickle.loads(data)[3]["txt"]) == b"text 3"


def test_indexes_in_memory_are_bounded(texts, monkeypatch):
    monkeypatch.setattr(indexes_module, "INDEX_MEMORY_BYTES", 1)
    ds = hr.open(texts)
    assert [sample["__key__"] for sample in ds] == [f"k{i:02d}" for i in range(40)]
    assert len(ds._indexes._kept) == 1


def test_threads_share_a_dataset(texts):
    ds, wrong = hr.open(texts), []

    def read(offset):
        wrong.extend(i for i in range(40) if bytes(ds[(i + offset) % 40]["cls"]) != str((i + offset) % 40).encode())

    threads = [threading.Thread(target=read, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_damaged_sample_is_an_error_that_names_it_and_others_are_read(texts):
    ds = hr.open(texts)
    offset, length = ds.piece(1).extent(2, 3)
    path = texts / ds.shard_name(1)
    data = bytearray(path.read_bytes())
    data[offset + length - 1] ^= 1
    path.write_bytes(data)
    number = int(ds.pieces.samples[0]) + 2
    with pytest.raises(DamagedError, match=rf"sample k{number:02d} of .*shard-000001\.tar is damaged: its checksum"):
        ds[number]
    assert ds[number - 1]["__key__"] == f"k{number - 1:02d}"


def test_a_sample_over_the_limit_is_an_error(texts):
    assert hr.open(texts, max_sample_bytes="2048")[0]["__key__"] == "k00"
    with pytest.raises(DatasetError, match=r"sample k00 .* 2,048 bytes, more than max_sample_bytes=2,047"):
        hr.open(texts, max_sample_bytes=2047)[0]
    with pytest.raises(OptionError, match="max_sample_bytes must be"):
        hr.open(texts, max_sample_bytes="lots")


def test_what_unpacks_to_too_much_as_a_whole_is_refused_by_number_too(tmp_path, monkeypatch):
    """A manifest may say anything of a small file, and come from anyone."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name in ("a.bin", "b.bin"):
            info = tarfile.TarInfo(name)
            info.size = 1 << 20
            tar.addfile(info, io.BytesIO(bytes(1 << 20)))
    hr.index(tmp_path)
    assert bytes(hr.open(tmp_path)[1]["bin"]) == bytes(1 << 20)
    monkeypatch.setattr(dataset_module, "MAX_UNPACKED_BYTES", 1 << 20)
    with pytest.raises(
        DatasetError, match=r"a\.tar\.gz is unpacked as a whole, to 2,\d+,\d+ bytes, .* 1,048,576: repack"
    ):
        hr.open(tmp_path)[1]


def test_windows_of_tokens(tmp_path):
    documents = [np.arange(start, start + 700, dtype=np.uint16) for start in range(0, 2100, 700)]
    hr.pack([{"tokens": tokens} for tokens in documents], tmp_path / "t", format="tokens", shuffle=False)
    ds = hr.open(tmp_path / "t")
    np.testing.assert_array_equal(ds[1]["tokens"], documents[1])
    windows = ds.windows(101, 100)
    assert len(windows) == 20
    assert windows.schema["tokens"].shape == (101,)
    assert windows.fingerprint not in (ds.fingerprint, ds.windows(100).fingerprint)
    assert windows.fingerprint == pickle.loads(pickle.dumps(windows)).fingerprint
    np.testing.assert_array_equal(windows[7]["tokens"], np.arange(700, 801))
    np.testing.assert_array_equal(windows.lookup("shard-000000:300")["tokens"], np.arange(300, 401))
    assert len(ds.windows(2101)) == 0
    for wrong in (0, -1):
        with pytest.raises(OptionError, match="at least 1"):
            ds.windows(wrong)
    for wrong in ("3", 1.5, True):
        with pytest.raises(OptionError, match="must be a whole number"):
            ds.windows(wrong)
        with pytest.raises(OptionError, match="must be a whole number"):
            ds.windows(100, wrong)
    with pytest.raises(OptionError, match="whole tokens"):
        windows.windows(5)


def test_windows_are_of_tokens_only(texts):
    with pytest.raises(OptionError, match="windows are cut from a dataset of whole tokens"):
        hr.open(texts).windows(5)


def test_an_ordinary_folder_of_tars_opens_and_travels(tmp_path):
    for k in range(3):
        write_tar(tmp_path / f"x-{k}.tar", [(f"{k}{i}.txt", f"{k}{i}".encode()) for i in range(4)])
    (tmp_path / "README").write_text("hello")
    ds = pickle.loads(pickle.dumps(hr.open(tmp_path)))
    assert [bytes(sample["txt"]) for sample in ds] == [f"{k}{i}".encode() for k in range(3) for i in range(4)]
    assert ds.verify() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README", "x-0.tar", "x-1.tar", "x-2.tar"]


def test_an_ordinary_folder_of_token_files_opens(tmp_path):
    for k in range(2):
        np.arange(k, 5000 + k, dtype="<u2").tofile(tmp_path / f"part{k}.uint16.bin")
    ds = hr.open(tmp_path)
    assert len(ds) == 2
    assert ds.windows(64)[-1]["__key__"] == "part1.uint16:4928"
    np.arange(4, dtype="<u4").tofile(tmp_path / "part2.uint32.bin")
    with pytest.raises(
        DatasetError, match=r"one type: in part2\.uint32\.bin the field 'tokens' is uint32, in others uint16"
    ):
        hr.open(tmp_path)


def test_indexing_adopts_a_folder_in_place(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.txt", b"one"), ("2.txt", b"two")])
    shard = (tmp_path / "a.tar").read_bytes()
    fingerprint = hr.open(tmp_path).fingerprint
    manifest = hr.index(tmp_path)
    assert (tmp_path / "a.tar").read_bytes() == shard
    assert manifest.request is None
    ds = hr.open(tmp_path)
    assert (ds.manifest, ds.fingerprint) == (manifest, fingerprint)
    assert bytes(ds.lookup("2")["txt"]) == b"two"
    assert ds.verify() == []
    with pytest.raises(TargetError, match=r"has a manifest already: delete its headrace\.json"):
        hr.index(tmp_path)


def test_bare_token_files_are_indexed_with_a_dtype(tmp_path):
    np.arange(100, dtype="<u4").tofile(tmp_path / "tokens.bin")
    with pytest.raises(DatasetError, match=r"is not a dataset: .* found tokens\.bin"):
        hr.index(tmp_path)
    assert hr.index(tmp_path, dtype="uint32").samples == 1
    assert hr.open(tmp_path)[0]["tokens"].tolist() == list(range(100))


def test_a_dtype_for_tars_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.txt", b"one")])
    with pytest.raises(OptionError, match="dtype is for token files"):
        hr.index(tmp_path, dtype="uint16")


def test_what_is_no_dataset_is_said_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jpg").write_bytes(b"x")
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "a.tar.gz").write_bytes(b"x")
    hr.pack([{"txt": "x"}], tmp_path / "outer" / "train")
    for name, message in {
        "nowhere": "nothing is there",
        "empty": "it is empty",
        "files/a.jpg": r"expected headrace\.json, .* found a\.jpg: pack it first",
        "gz": r"a\.tar\.gz is cut short",
        "outer": "found datasets in its folders train: open one of them",
    }.items():
        with pytest.raises(DatasetError, match=message) as caught:
            hr.open(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_an_unfinished_dataset_does_not_open(texts):
    (texts / "headrace.partial").write_bytes(b"")
    for refused in (hr.open, hr.index):
        with pytest.raises(DatasetError, match=r"is not finished: .* run the same pack again to go on"):
            refused(texts)


def test_a_manifest_of_the_future_is_refused(texts):
    path = texts / "headrace.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":7'))
    with pytest.raises(ManifestError, match=r"has version 7, .* upgrade headrace"):
        hr.open(texts)


def test_a_format_of_the_future_is_refused(texts):
    path = texts / "headrace.json"
    path.write_bytes(path.read_bytes().replace(b'"format":"tar"', b'"format":"zip"'))
    with pytest.raises(ManifestError, match="fingerprint must agree"):
        hr.open(texts)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (b"{}", r"a dataset of tokens has the field 'tokens' of dtype uint16 or uint32, got None"),
        (b'{"tokens":{"type":"array","dtype":"float64"}}', "got 'float64'"),
    ],
)
def test_a_manifest_of_tokens_without_their_type_is_refused(tmp_path, field, message):
    hr.pack([{"tokens": np.arange(9, dtype=np.uint16)}], tmp_path / "t", format="tokens")
    path = tmp_path / "t" / "headrace.json"
    path.write_bytes(path.read_bytes().replace(b'{"tokens":{"type":"array","dtype":"uint16"}}', field))
    with pytest.raises(ManifestError, match=message):
        hr.open(tmp_path / "t")


def test_an_index_of_another_type_than_the_manifest_says_is_refused(tmp_path):
    hr.pack([{"tokens": np.arange(9, dtype=np.uint16)}], tmp_path / "t", format="tokens")
    path = tmp_path / "t" / "headrace.json"
    path.write_bytes(path.read_bytes().replace(b'"uint16"', b'"uint32"'))
    ds = hr.open(tmp_path / "t")
    with pytest.raises(DamagedError, match=r"is of uint16 tokens, the manifest says uint32"):
        ds[0]
    assert len(ds.verify()) == 1


def test_indexing_a_folder_with_a_broken_shard_writes_nothing(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.txt", b"one")])
    (tmp_path / "b.tar").write_bytes(b"no tar")
    with pytest.raises(DamagedError, match=r"b\.tar is cut short"):
        hr.index(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "b.tar"]


def test_a_field_named_like_the_key_is_passed_over(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.__key__", b"other"), ("1.txt", b"one")])
    (sample,) = hr.open(tmp_path)
    assert (sample["__key__"], sorted(sample)) == ("1", ["__key__", "txt"])


def together(num_threads, do):
    """What each of some threads got that did the same at the same time: a result, or an error."""
    start = threading.Barrier(num_threads)

    def one(_):
        start.wait()
        try:
            return do()
        except Exception as err:
            return err

    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(one, range(num_threads)))


def test_threads_that_need_an_index_at_once_read_it_once(tmp_path, monkeypatch):
    """Reading threads come upon a new shard together; from a store each would pay for the whole index."""
    hr.pack(({"bin": bytes(50)} for _ in range(20_000)), tmp_path / "d")
    reads = []
    read = indexes_module.Indexes.read
    monkeypatch.setattr(indexes_module.Indexes, "read", lambda self, k: (reads.append(k), read(self, k))[1])
    dataset = hr.open(tmp_path / "d")
    assert together(16, lambda: dataset.piece(0).num_samples) == [20_000] * 16
    assert reads == [0]


def test_an_index_that_cannot_be_read_is_every_threads_error_and_is_asked_for_again(texts):
    index = texts / "shard-000000.tar.idx"
    content = index.read_bytes()
    index.write_bytes(bytes(len(content)))
    dataset = hr.open(texts)
    assert {type(one) for one in together(8, lambda: dataset.piece(0))} == {DamagedError}
    index.write_bytes(content)
    assert {one.num_samples for one in together(8, lambda: dataset.piece(0))} == {dataset.pieces.samples[0]}
