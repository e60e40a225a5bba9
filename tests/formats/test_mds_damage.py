"""MDS that is broken, cut, swapped, or lies: named and refused, never read as something else, never without bound."""

import struct
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mds_files import SAMPLES, config, flipped, plain, put, read_or_error, same, scan, scan_alone, shard, write

from headrace.errors import DamagedError, DatasetError, HeadraceError, ManifestError
from headrace.formats.arrow import index_to_bytes
from headrace.formats.columns import Strings
from headrace.formats.mds import MdsIndex


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder of several shards, written once: every write waits for the disk."""
    folder = tmp_path_factory.mktemp("mds") / "packed"
    assert len(write(folder, SAMPLES, 500)) > 3
    return folder


@pytest.fixture(scope="module")
def packed_in_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mds") / "packed"
    write(folder, SAMPLES)
    return folder


def flip_in(content, data):
    """A changed bit of these bytes: its number, and the bytes with it."""
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    return bit, flipped(content, bit)


@contextmanager
def content_of(path, changed):
    """The file with other content, for as long as this lasts."""
    held = path.read_bytes()
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(held)


@given(st.data())
def test_a_flipped_bit_anywhere_is_noticed(packed, data):
    """In a shard it is always an error; in index.json it is one, or it changes nothing that is read."""
    path = data.draw(st.sampled_from(sorted(packed.glob("*.mds")) + [packed / "index.json"] * 3))
    _, changed = flip_in(path.read_bytes(), data)
    with content_of(path, changed):
        found = read_or_error(packed)
    if path.suffix == ".mds":
        assert isinstance(found, DatasetError)
    else:
        assert isinstance(found, HeadraceError) or same(found, plain(SAMPLES))


@given(st.data())
def test_a_flipped_bit_behind_the_index_damages_one_sample_at_most(packed_in_one, data):
    [(path, index, _)] = scan(packed_in_one)
    bit, content = flip_in(path.read_bytes(), data)
    first, last = sorted(data.draw(st.tuples(st.integers(0, 12), st.integers(0, 12))))
    offset, length = index.extent(first, last)
    opened = index.open(first, last, memoryview(content)[offset : offset + length])
    assert len(opened.damage) <= 1
    for i in range(first, last):
        assert i in opened.damage or same(plain(opened.sample(i)), plain(SAMPLES[i]))
    found = list(index.all_damage(lambda at, size: memoryview(content)[at : at + size], len(content)))
    hit = [i for i in range(12) if index.extent(i, i + 1)[0] <= bit // 8 < sum(index.extent(i, i + 1))]
    assert [i for i, _ in found] == hit


@given(st.data())
def test_a_shard_that_is_cut_or_goes_on_is_refused(packed_in_one, data):
    path = packed_in_one / "shard-000000.mds"
    content = path.read_bytes()
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    with content_of(path, data.draw(st.sampled_from([cut, content + b"\0", content + content]))):
        with pytest.raises(DamagedError, match=r"is cut short: index\.json|has bytes too many"):
            scan(packed_in_one)
        with pytest.raises(DamagedError, match="is not a whole shard of MDS"):
            scan_alone(path)


def test_a_shard_that_is_missing_or_swapped_is_named(tmp_path):
    samples = [sample | {"t": "same length"} for sample in SAMPLES]
    rows = write(tmp_path / "d", samples, 600)
    first, second = (tmp_path / "d" / row.file for row in rows[1:3])
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    with pytest.raises(DamagedError, match=r"shard-000001.mds is (damaged: its xxh3_128|cut short|not a whole)"):
        scan(tmp_path / "d")
    second.unlink()
    first.write_bytes(held)
    with pytest.raises(DamagedError, match=r"shard-000002.mds is missing"):
        scan(tmp_path / "d")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it ends too early"),
        (b"\2\0\0", "it ends too early"),
        (shard(2**32 - 1), "4,294,967,295 samples in 136 bytes"),
        (shard(offsets=[0, 16, 8]), "its samples do not lie one behind the other"),
        (shard(offsets=[-105, 8, 16]), "its samples do not lie one behind the other"),
        (shard(offsets=[-30, 8, 16]), "it does not say its columns"),
        (shard(offsets=[0, 8, 15]), "its samples end at byte 135 of 136"),
        (shard(offsets=[0, 8, 1 << 30]), "its samples end at byte 1,073,741,944 of 136"),
        (shard(offsets=[0, 7, 16]), "sample 0 has 7 bytes, but values of 8"),
        (shard(offsets=[0, 16, 16]), "sample 0 has 16 bytes, but values of 8"),
        (shard(config=b"{" * 9), "it does not say its columns"),
        (shard(config=b"[1]"), "it does not say its columns"),
        (shard(config=b'{"version":2,"column_names":5}'), "it does not say its columns"),
        (shard(config=config(encodings=[1])), "it does not say its columns as version 2 has them"),
        (shard(config=config(version=3)), "it does not say its columns as version 2 has them"),
        (shard(config=config(sizes=[4])), r"its columns have the sizes \[8\], it says \[4\]"),
        (shard(config=config(encodings=[], sizes=[])), "it does not say its columns"),
    ],
)
def test_a_shard_that_lies_is_refused(tmp_path, data, reason):
    folder = put(tmp_path / "d", data)
    with pytest.raises(DamagedError, match=f"shard.00000.mds is not a whole shard of MDS: {reason}; restore it"):
        scan_alone(folder / "shard.00000.mds")


def test_values_that_reach_out_of_their_sample_are_refused(tmp_path):
    columns = config(["a", "b"], ["str", "str"], [None, None])
    for lengths in ((0, 9), (2**32 - 1, 0), (2**32 - 1, 2**32 - 1)):
        body = struct.pack("<II", *lengths) + b"12345678"
        with pytest.raises(DamagedError, match=r"sample 0 has 16 bytes, but values of"):
            scan_alone(put(tmp_path / "d", shard(1, [0, 16], columns, body)) / "shard.00000.mds")
    with pytest.raises(DamagedError, match=r"sample 0 has 7 bytes, too few for its columns"):
        scan_alone(put(tmp_path / "d", shard(1, [0, 7], columns, b"1234567")) / "shard.00000.mds")


def test_a_key_that_is_not_one_is_refused(tmp_path):
    columns = config(["__key__"], ["str"], [None])
    body = struct.pack("<I", 1) + b"\xff"
    with pytest.raises(DamagedError, match=r"sample 0 has a key that is not str: 'utf-8' codec"):
        scan_alone(put(tmp_path / "d", shard(1, [0, 5], columns, body)) / "shard.00000.mds")
    body = struct.pack("<I", 70_000) + bytes(70_000)
    with pytest.raises(DamagedError, match=r"sample 0 has a key of 70,000 bytes, more than 65,536"):
        scan_alone(put(tmp_path / "d", shard(1, [0, 70_004], columns, body)) / "shard.00000.mds")


FACTS = {"stem": "s", "columns": '[["n","int"]]', "compression": ""}
PACKED = {"compression": "zstd", "unpacked_bytes": "100", "stored_xxh3_64": "0" * 16}


def index_file(offsets=(50, 58), lengths=(8, 8), **facts):
    columns = {
        "key": Strings.of([""] * len(offsets)),
        "offset": np.array(offsets, np.int64),
        "length": np.array(lengths, np.int64),
        "checksum": np.zeros(len(offsets), np.uint64),
    }
    return memoryview(index_to_bytes("mds", columns, FACTS | facts))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (index_file(offsets=(50, 59)), "speaks of bytes outside its shard of 66 bytes"),
        (index_file(offsets=(-8, 58)), "outside its shard"),
        (index_file(lengths=(8, 2**63 - 1)), "outside its shard"),
        (index_file(lengths=(-1, 8)), "outside its shard"),
        (index_file(offsets=(58, 50)), "outside its shard"),
        (index_file(offsets=(50, 93), **PACKED), "speaks of bytes outside its shard of 100 bytes"),
        (index_file(columns="[1]"), "does not list its columns"),
        (index_file(columns="{"), "does not list its columns"),
        (index_file(columns='[["n","pkl"]]'), "does not list its columns .*pickles"),
        (index_file(compression="rar"), "unpacks to|does not say its unpacked_bytes"),
        (index_file(**PACKED | {"compression": "rar"}), "is of no known compression"),
        (index_file(**PACKED | {"unpacked_bytes": str(2**32)}), "unpacks to '4294967296' bytes"),
        (index_file(**PACKED | {"unpacked_bytes": "9" * 5000}), "unpacks to"),
        (index_file(**PACKED | {"unpacked_bytes": "-1"}), "unpacks to"),
        (index_file(**PACKED | {"stored_xxh3_64": "x"}), "does not say the checksum of its shard"),
    ],
)
def test_an_index_file_that_lies_is_refused(content, reason):
    with pytest.raises(ManifestError, match=f"the index idx .*({reason})"):
        MdsIndex.from_file(content, "idx", 66)


@given(st.data())
def test_a_flipped_bit_in_an_index_file_is_refused_or_harmless(packed_in_one, data):
    """The manifest has a checksum of it; without one it must still not crash, nor give what no sample is."""
    [(path, index, row)] = scan(packed_in_one)
    _, content = flip_in(index.to_file(), data)
    with suppress(DatasetError):
        changed = MdsIndex.from_file(memoryview(content), "idx", row.bytes)
        offset, length = changed.extent(0, changed.num_samples)
        opened = changed.open(0, changed.num_samples, memoryview(path.read_bytes())[offset : offset + length])
        for i in range(changed.num_samples):
            if i not in opened.damage:
                opened.sample(i)
