"""Unpacking: every codec, streams joined together, what is cut or has junk behind it, and files that claim too much."""

import bz2
import functools
import gzip
import io
import lzma
import os
import tracemalloc

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import StorageError
from headrace.formats.unpacking import CODECS, UnpackError, codec_of, unpack, unpack_exactly, unpacked, unpacked_head

STREAMED = [codec for codec in CODECS if codec != "snappy"]
DATA = os.urandom(140_000) + bytes(200_000) + b"the end"


@functools.cache
def packed(data, codec):
    if codec == "gz":
        return gzip.compress(data)
    if codec == "bz2":
        return bz2.compress(data)
    if codec == "xz":
        return lzma.compress(data)
    return pa.Codec({"zst": "zstd", "br": "brotli"}.get(codec, codec)).compress(data, asbytes=True)


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.binary(max_size=5000))
def test_what_is_packed_comes_back(codec, data):
    assert bytes(unpack(packed(data, codec), codec, len(data))) == data


@pytest.mark.parametrize("codec", STREAMED)
@given(sizes=st.lists(st.integers(1, 200_000), max_size=20))
def test_a_stream_gives_the_same_in_pieces_of_any_size(codec, sizes):
    stream = unpacked(io.BytesIO(packed(DATA, codec)), codec)
    pieces = [stream.read(size) for size in [*sizes, 1_000_000]]
    assert b"".join([*pieces, stream.readall()]) == DATA
    assert stream.read(1) == b""


@pytest.mark.parametrize("codec", STREAMED)
def test_several_streams_in_one_file_are_read_on(codec):
    assert bytes(unpack(packed(DATA, codec) + packed(b"more", codec), codec, 1 << 20)) == DATA + b"more"


@pytest.mark.parametrize("codec", CODECS)
@given(at=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_an_error(codec, at):
    whole = packed(DATA, codec)
    with pytest.raises(UnpackError):
        unpack(whole[: max(1, int(at * len(whole)))], codec, 1 << 20)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("junk", [b"x", b"junk", b"PK\3\4" * 100, bytes(3), bytes(513)])
def test_junk_behind_the_end_is_an_error(codec, junk):
    with pytest.raises(UnpackError):
        unpack(packed(DATA, codec) + junk, codec, 1 << 20)


def test_xz_streams_may_be_padded_with_zeros_in_fours():
    assert bytes(unpack(packed(b"a", "xz") + bytes(8) + packed(b"b", "xz") + bytes(4), "xz", 9)) == b"ab"


@pytest.mark.parametrize("codec", ["gz", "bz2", "xz"])
@given(at=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_flipped_byte_is_an_error_or_changes_nothing(codec, at, change):
    """These have checksums of their own; what they do not cover, as the name in a gzip header, is not content."""
    data = bytearray(packed(DATA, codec))
    data[int(at * len(data))] ^= change
    try:
        made = unpack(bytes(data), codec, 1 << 20)
    except UnpackError:
        return
    assert bytes(made) == DATA


@pytest.mark.parametrize("codec", CODECS)
def test_what_unpacks_to_too_much_is_refused(codec):
    with pytest.raises(UnpackError, match="more than 407 bytes"):
        unpack(packed(DATA, codec), codec, 407)
    assert bytes(unpack(packed(DATA, codec), codec, len(DATA))) == DATA


@pytest.mark.parametrize("codec", CODECS)
@given(data=st.binary(min_size=1, max_size=3000), change=st.integers(1, 3000))
def test_what_is_known_to_have_a_length_has_it_or_is_an_error(codec, data, change):
    stored = packed(data, codec)
    assert bytes(unpack_exactly(stored, codec, len(data))) == data
    with pytest.raises(UnpackError, match=f"it unpacks to {len(data):,} bytes, not {len(data) + change:,}"):
        unpack_exactly(stored, codec, len(data) + change)
    with pytest.raises(UnpackError, match="more than"):
        unpack_exactly(stored, codec, max(0, len(data) - change))


@pytest.mark.parametrize("codec", ["gz", "bz2", "xz", "zst", "br"])
def test_a_bomb_takes_no_memory(codec):
    bomb = packed(bytes(50 << 20), codec)
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    try:
        with pytest.raises(UnpackError):
            unpack(bomb, codec, 1000)
        stream = unpacked(io.BytesIO(bomb), codec)
        for _ in range(10):
            assert stream.read(1000) == bytes(1000)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
        assert pa.total_allocated_bytes() - before < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("claim", [b"", b"\xff" * 10, b"\xff\xff\xff\xff\x0f", b"\xe8\x07abc"])
def test_a_block_of_snappy_that_claims_what_it_cannot_hold_is_refused(claim):
    with pytest.raises(UnpackError):
        unpack(claim, "snappy", 1 << 40)


def test_an_xz_window_larger_than_memory_should_be_is_refused():
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    with pytest.raises(UnpackError, match="Memory usage limit"):
        unpack(lzma.compress(b"a", filters=filters), "xz", 10)


@pytest.mark.parametrize("codec", ["gz", "bz2", "xz", "zst"])
def test_a_codec_is_recognised_by_the_first_bytes(codec):
    assert codec_of(packed(b"", codec)) == codec
    assert codec_of(packed(DATA, codec)[:8]) == codec


@pytest.mark.parametrize("head", [b"", b"\x1f", b"PK\3\4", b"BZ", bytes(512)])
def test_other_bytes_show_no_codec(head):
    assert codec_of(head) is None


@pytest.mark.parametrize("codec", STREAMED)
def test_the_head_of_a_file_unpacks_as_far_as_it_goes(codec):
    stored = packed(DATA, codec)
    assert unpacked_head(stored, codec, 10) == DATA[:10]
    head = unpacked_head(stored[: len(stored) * 19 // 20], codec, 200_000)
    assert head == DATA[: len(head)]
    assert len(head) > 50_000 or codec == "bz2"  # which gives nothing before its first block is whole
    assert unpacked_head(b"nothing of the kind", codec, 10) == b""


@pytest.mark.parametrize("codec", STREAMED)
def test_what_the_store_says_comes_through(codec):
    class Store(io.BytesIO):
        def read(self, size=-1):
            if self.tell():
                raise StorageError("gone")
            return super().read(min(size, 1000))

    with pytest.raises(StorageError, match="gone"):
        unpacked(Store(packed(DATA, codec)), codec).readall()
