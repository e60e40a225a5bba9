"""Compressed shards of MDS: read as a whole, and never unpacked to more than `index.json` says."""

import struct
import tracemalloc
from contextlib import suppress

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mds_files import config, flipped, listed, put, read_or_error, samples_of, scan, shard

from headrace.errors import DamagedError, DatasetError
from headrace.formats.mds import MDS
from headrace.formats.mds.compression import codec_of, unpack_shard


def compressed(folder, data, codec="zstd", suffix="zstd", **changes):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    stored = sink.getvalue().to_pybytes()
    return put(folder, stored, listed(data, stored, suffix, **changes), f"shard.00000.mds.{suffix}")


def test_what_a_compressed_shard_says_is_kept_in_the_index_file(tmp_path):
    [(path, index, row)] = scan(compressed(tmp_path / "d", shard()))
    (tmp_path / "d" / "index.json").unlink()
    again = MDS.read_index(memoryview(index.to_file()), "idx", row.bytes)
    assert (again.is_ranged, again.unpacked_bytes, again.extent(0, 1)) == (False, len(shard()), (0, row.bytes))
    assert list(again.runs()) == [(0, 2)]
    assert [sample["__key__"] for sample in samples_of(path, again)] == ["shard-00000:0", "shard-00000:1"]
    opened = again.open(1, 2, memoryview(path.read_bytes()))
    assert (opened.sample(1)["n"], opened.num_bytes) == (int.from_bytes(b"abcdefgh", "little"), len(shard()))


@given(st.data())
def test_a_flipped_bit_in_a_compressed_shard_damages_it_all(tmp_path_factory, data):
    folder = compressed(tmp_path_factory.mktemp("mds"), shard())
    [(path, index, _)] = scan(folder)
    content = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content = flipped(content, bit)
    with pytest.raises(DamagedError, match=r"shard shard-00000 is damaged: its checksum is"):
        index.open(0, 1, memoryview(content))
    assert [i for i, _ in index.all_damage(lambda at, n: memoryview(content)[at : at + n], len(content))] == [0, 1]
    cut = content[: bit // 8]
    assert [i for i, _ in index.all_damage(lambda at, n: memoryview(cut)[at : at + n], len(cut))] == [0, 1]
    path.write_bytes(content)  # and before there is an index, without a hash in index.json
    found = read_or_error(folder)
    assert isinstance(found, DatasetError) or len(found) == 2


CODECS = {"zstd": "zstd", "gz": "gzip", "br": "brotli", "bz2": "bz2"}
"""What index.json calls them, and Arrow."""


@pytest.mark.parametrize("name", CODECS)
def test_what_unpacks_to_another_length_is_refused(tmp_path, name):
    data = shard()
    for num_bytes in (len(data) - 1, len(data) + 1, 0):
        raw = {"basename": "shard.00000.mds", "bytes": num_bytes, "hashes": {}}
        folder = compressed(tmp_path / str(num_bytes), data, CODECS[name], name, raw_data=raw)
        with pytest.raises(DamagedError, match=r"shard.00000.mds.\w+ is not a whole shard of MDS"):
            scan(folder)
    [(path, _, _)] = scan(compressed(tmp_path / "d", data, CODECS[name], name))
    content = path.read_bytes()
    assert bytes(unpack_shard(memoryview(content), codec_of(name, "it"), len(data), "it")) == data
    for changed in (content[:-1], content + b"\0" * 9, content + content, b""):
        with pytest.raises(DamagedError, match="it is damaged: it does not unpack as"):
            unpack_shard(memoryview(changed), codec_of(name, "it"), len(data), "it")
        put(tmp_path / "d", changed, listed(data, changed, name), path.name)
        with pytest.raises(DamagedError, match=r"shard.00000.mds.\w+ is (damaged|not a whole shard)"):
            scan(tmp_path / "d")


@given(st.sampled_from([*CODECS, "snappy"]), st.binary(max_size=50), st.integers(0, 2**32 - 1))
def test_no_bytes_crash_the_unpacking(name, stored, num_bytes):
    with suppress(DamagedError):
        assert len(unpack_shard(memoryview(stored), codec_of(name, "it"), num_bytes, "it")) == num_bytes


@pytest.mark.parametrize("name", CODECS)
def test_a_compressed_bomb_takes_no_memory(tmp_path, name):
    """64 MiB behind a whole shard, packed to a few kB: it is given up where the shard has to end."""
    folder = compressed(tmp_path / "d", shard() + bytes(64 << 20), CODECS[name], name)
    index = orjson.loads((folder / "index.json").read_bytes())
    index["shards"][0]["raw_data"]["bytes"] = len(shard())
    (folder / "index.json").write_bytes(orjson.dumps(index))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        with pytest.raises(DamagedError, match=r"goes on behind its 136 bytes"):
            scan(folder)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        assert pa.total_allocated_bytes() - before < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_large_sample_of_a_compressed_shard_is_scanned_within_bounds(tmp_path):
    num_bytes = 64 << 20
    body = struct.pack("<I", num_bytes) + bytes(num_bytes)
    data = shard(1, [0, len(body)], config(["a"], ["bytes"], [None]), body)
    folder = compressed(tmp_path / "d", data, column_names=["a"], column_encodings=["bytes"], samples=1)
    tracemalloc.start()
    try:
        [(_, index, row)] = scan(folder)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert row.unpacked_bytes == index.unpacked_bytes == len(data)
    with pytest.raises(DatasetError, match=r"unpacks to 67,\d+,\d+ bytes, more than max_unpacked_bytes=1,000"):
        scan(folder, max_unpacked_bytes=1000)


def test_snappy_that_claims_more_than_it_can_hold_is_refused(tmp_path):
    """Its length stands at its start, and memory would be asked for before anything else is looked at."""
    stored = b"\xff\xff\xff\xff\x0f" + b"\0" * 20
    raw = {"basename": "shard.00000.mds", "bytes": 2**32 - 1, "hashes": {}}
    index = listed(shard(), stored, "snappy", raw_data=raw)
    with pytest.raises(DamagedError, match="does not unpack as snappy"):
        scan(put(tmp_path / "d", stored, index, "shard.00000.mds.snappy"))
