"""Compressed tars: read like plain ones, whole or up to where they are damaged, and never beyond what is allowed."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.dataset.listing import FolderListing
from headrace.errors import DamagedError, DatasetError, ManifestError
from headrace.formats.format import ScanOptions
from headrace.formats.tar import encode_tar, find_tars
from headrace.formats.tar.index import CompressedTarIndex, read_tar_index
from headrace.formats.tar.scan import scan_tar
from headrace.storage import LocalFile, locate


def zstd(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
CODECS = pytest.mark.parametrize("codec", PACK)
RANDOM = np.random.default_rng(0)
SAMPLES = [
    {"__key__": f"d/{i:03d}", "bin": RANDOM.bytes(3000), "txt": b"text " * i, "cls": str(i).encode()} for i in range(60)
]
TAR = b"".join(encode_tar(sample).blob for sample in SAMPLES) + bytes(1024)
PACKED = {codec: pack(TAR) for codec, pack in PACK.items()}


def scan(path, **options):
    with LocalFile(path) as file:
        return scan_tar(file, {}, ScanOptions(**options))


def scan_bytes(data, tmp_path, **options):
    path = tmp_path / "a.tar.x"
    path.write_bytes(data)
    return scan(path, **options)


def plain(sample):
    return {name: bytes(value) if isinstance(value, memoryview) else value for name, value in sample.items()}


def read(index, data, first=0, last=None):
    opened = index.open(first, index.num_samples if last is None else last, memoryview(data))
    return opened, {i: plain(opened.sample(i)) for i in range(first, last or index.num_samples)}


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    return {codec: scan_bytes(data, tmp_path_factory.mktemp(codec))[0] for codec, data in PACKED.items()}


@CODECS
@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_tools_are_read(tmp_path, codec, dialect):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=dialect) as tar:
        for name in ["e" * 90 + "/" + "d" * 90 + "/a.jpg", "b.jpg"]:
            member = tarfile.TarInfo(name)
            member.mtime, member.size = 1.5 if dialect == tarfile.PAX_FORMAT else 1, len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    data = PACK[codec](file.getvalue())
    index, row = scan_bytes(data, tmp_path)
    assert (row.samples, row.bytes, row.unpacked_bytes) == (2, len(data), len(file.getvalue()))
    _, samples = read(index, data)
    assert [samples[i]["jpg"].decode() for i in range(2)] == ["e" * 90 + "/" + "d" * 90 + "/a.jpg", "b.jpg"]


@CODECS
def test_an_index_comes_back_from_its_file_and_from_a_pickle(indexes, codec):
    index = indexes[codec]
    for again in (
        pickle.loads(pickle.dumps(index)),
        read_tar_index(memoryview(index.to_file()), "i", len(PACKED[codec])),
    ):
        assert isinstance(again, CompressedTarIndex)
        assert not again.is_ranged
        assert again.to_file() == index.to_file()
        assert (again.unpacked_bytes, again.extent(3, 5)) == (len(TAR), (0, len(PACKED[codec])))
        assert [again.key(i) for i in range(60)] == [sample["__key__"] for sample in SAMPLES]
        assert [list(run) for run in again.runs()] == [[0, 60]]
    opened, samples = read(index, PACKED[codec])
    assert (opened.damage, [samples[i] for i in range(60)]) == ({}, SAMPLES)


@CODECS
@given(cut=st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted))
def test_a_run_of_samples_holds_no_more_than_itself(indexes, codec, cut):
    first, last = cut
    opened = indexes[codec].open(first, last, memoryview(PACKED[codec]))
    assert opened.num_bytes == sum(indexes[codec].sample_bytes[first:last].tolist())
    assert [plain(opened.sample(i)) for i in range(first, last)] == SAMPLES[first:last]


def test_members_of_gzip_joined_by_cat_are_one_tar(tmp_path):
    parts = [TAR[at : at + 50_000] for at in range(0, len(TAR), 50_000)]
    data = b"".join(map(gzip.compress, parts))
    assert read(scan_bytes(data, tmp_path)[0], data)[1] == dict(enumerate(SAMPLES))


def found(folder):
    listed = find_tars(FolderListing(locate(folder)), ScanOptions())
    return [] if listed is None else list(listed.files)


@CODECS
def test_a_compressed_tar_is_known_by_what_is_inside(tmp_path, codec):
    (tmp_path / "no-ending").write_bytes(PACKED[codec])
    (tmp_path / "lines.jsonl.x").write_bytes(PACK[codec](b'{"a": 1}\n' * 1000))
    (tmp_path / "noise.x").write_bytes(PACK[codec](os.urandom(3_000_000)))
    (tmp_path / "zeros.x").write_bytes(PACK[codec](bytes(3_000_000)))
    (tmp_path / "broken.x").write_bytes(PACKED[codec][:6] + b"broken" * 100)
    assert found(tmp_path) == ["no-ending"]


@pytest.mark.parametrize(
    "name", ["a.tar.gz", "a.TGZ", "a.tar.bz2", "a.tbz", "a.tar.xz", "a.txz", "a.tar.zst", "a.tzst"]
)
def test_what_is_named_like_one_is_taken_for_one_so_that_damage_is_said(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>not found</html>" * 100)
    assert found(tmp_path) == [name]
    with pytest.raises(DamagedError, match="is not a whole tar"):
        scan(tmp_path / name)


def check_prefix(index, data, codec):
    """What is not damaged is right, and the index says the same of single samples, of runs and of the whole."""
    opened, samples = read(index, data)
    assert all(samples[i] == SAMPLES[i] for i in range(60) if i not in opened.damage)
    everything = dict(index.all_damage(lambda offset, length: memoryview(data)[offset : offset + length], len(data)))
    assert everything.keys() == opened.damage.keys()
    assert all(reason and "\n" not in reason for reason in everything.values())
    for i in (0, 30, 59):
        assert (i in index.open(i, i + 1, memoryview(data)).damage) == (i in opened.damage)
    return opened.damage


@CODECS
@given(at=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_flipped_byte_never_gives_a_wrong_sample(indexes, codec, at, change):
    data = bytearray(PACKED[codec])
    data[int(at * len(data))] ^= change
    check_prefix(indexes[codec], bytes(data), codec)


@CODECS
@given(at=st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_anywhere_gives_the_samples_before(indexes, tmp_path_factory, codec, at):
    data = PACKED[codec][: int(at * len(PACKED[codec]))]
    damage = check_prefix(indexes[codec], data, codec)
    assert at > 0.95 or damage, "the last samples are gone, if anything is"
    assert list(damage) == list(range(60 - len(damage), 60))
    with pytest.raises(DamagedError, match=r"a\.tar\.x"):
        scan_bytes(data, tmp_path_factory.mktemp("cut"))


def test_damage_is_said_with_its_reason(indexes):
    data = PACKED["gz"][:100_000]
    damage = indexes["gz"].open(0, 60, memoryview(data)).damage
    assert set(damage.values()) == {"its shard does not unpack up to there as gz (Truncated compressed stream)"}
    whole = gzip.compress(TAR[: 20 * 512])  # which unpacks well, to less
    reasons = indexes["gz"].open(0, 60, memoryview(whole)).damage.values()
    assert set(reasons) == {"its shard unpacks to 10,240 bytes only"}


@CODECS
@pytest.mark.parametrize("junk", [b"junk behind the end\n" * 30, bytes(1), b"x"])
def test_junk_behind_the_end_is_an_error(tmp_path, codec, junk):
    with pytest.raises(DamagedError, match=f"a.tar.x is damaged: before byte .* it stops to unpack as {codec}"):
        scan_bytes(PACKED[codec] + junk, tmp_path)


@CODECS
def test_data_behind_the_end_of_the_tar_inside_is_an_error(tmp_path, codec):
    with pytest.raises(DamagedError, match="data behind its end"):
        scan_bytes(PACK[codec](TAR + TAR), tmp_path)
    with pytest.raises(DamagedError, match="without the two zero blocks"):
        scan_bytes(PACK[codec](TAR[:-1024]), tmp_path)


def test_what_is_packed_twice_or_is_no_tar_is_refused(tmp_path):
    for content in (gzip.compress(TAR), b"text" * 1000):
        with pytest.raises(DamagedError, match="is not a whole tar: near byte 0, "):
            scan_bytes(gzip.compress(content), tmp_path)


@CODECS
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path, codec):
    bomb = PACK[codec](encode_tar({"__key__": "a", "bin": bytes(60 << 20)}).blob + bytes(1024))
    tracemalloc.start()
    try:
        with pytest.raises(
            DatasetError, match=r"unpacks to too much to be read as a whole: unpack the tar, .* smaller ones"
        ):
            scan_bytes(bomb, tmp_path, max_unpacked_bytes=50 << 20)
        assert scan_bytes(bomb, tmp_path)[1].unpacked_bytes == (60 << 20) + 512 + 1024
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_verifying_holds_no_whole_shard(tmp_path):
    """Nor does reading one sample of it hold more than the sample."""
    tar = b"".join(encode_tar({"__key__": str(i), "bin": bytes(6 << 20)}).blob for i in range(10)) + bytes(1024)
    data = gzip.compress(tar)
    index, _ = scan_bytes(data, tmp_path)
    tracemalloc.start()
    try:
        assert (
            dict(index.all_damage(lambda offset, length: memoryview(data)[offset : offset + length], len(data))) == {}
        )
        assert index.open(9, 10, memoryview(data)).damage == {}
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "facts", [{"codec": "lzh"}, {"codec": "snappy"}, {"unpacked_bytes": "-1"}, {"unpacked_bytes": "9" * 30}]
)
def test_an_index_with_impossible_facts_is_refused(indexes, facts):
    tar = indexes["gz"]._tar
    data = tar.to_file_with({"codec": "gz", "unpacked_bytes": str(len(TAR)), **facts})
    with pytest.raises(ManifestError, match="the index i is of a shard that is compressed as"):
        read_tar_index(memoryview(data), "i", 1000)


def test_an_index_that_claims_more_than_there_is_memory_is_damage(indexes):
    file = read_tar_index(memoryview(indexes["gz"]._tar.to_file()), "i", len(TAR))
    offsets = file._arrays[0].copy()
    offsets[-1] = 2**61
    lying = type(file)(2**62, file._names, file._keys, offsets, *file._arrays[1:])
    with pytest.raises(DamagedError, match="more than there is memory"):
        CompressedTarIndex(1000, "gz", lying).open(0, 60, memoryview(PACKED["gz"]))


CONVERT = """
import pathlib, sys
import headrace as hr

def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024

hr.pack([{"txt": "a"}], sys.argv[2] + "-first", transform=lambda sample: sample)  # imports everything
before = peak()
hr.pack(sys.argv[1], sys.argv[2], transform=lambda sample: {"txt": str(len(sample["bin"]))})
print(peak() - before)
"""


def test_a_compressed_shard_is_packed_without_holding_what_it_unpacks_to(tmp_path):
    with tarfile.open(tmp_path / "big.tar.gz", "w:gz", compresslevel=1) as tar:
        for i in range(300):
            info = tarfile.TarInfo(f"k{i:03d}.bin")
            info.size = 1_000_000 + i
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    command = [sys.executable, "-c", CONVERT, tmp_path / "big.tar.gz", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150
    packed = hr.open(tmp_path / "out")
    assert {s["__key__"]: bytes(s["txt"]) for s in packed[:]} == {
        f"k{i:03d}": str(1_000_000 + i).encode() for i in range(300)
    }


def test_a_compressed_shard_that_is_cut_off_later_gives_its_whole_samples(tmp_path):
    """Once it is indexed, what lies before the cut is read, and what does not is named."""
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar.gz", "w:gz") as tar:
        for i in range(40):
            info = tarfile.TarInfo(f"k{i:02d}.bin")
            data = np.random.default_rng(i).bytes(200_000)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    hr.index(tmp_path / "in")
    content = (tmp_path / "in" / "a.tar.gz").read_bytes()
    (tmp_path / "in" / "a.tar.gz").write_bytes(content[: len(content) // 2])
    kept = hr.pack(hr.open(tmp_path / "in"), tmp_path / "out", on_error="skip")
    assert 15 <= kept.samples <= 20
    assert kept.skipped == 40 - kept.samples
    for sample in hr.open(tmp_path / "out")[:]:
        i = int(sample["__key__"][1:])
        assert bytes(sample["bin"]) == np.random.default_rng(i).bytes(200_000)
