"""Shards that are compressed as a whole: by which methods, and how they are unpacked within a known bound.

What a shard unpacks to is known beforehand, from `index.json`. No more than that is ever made of it, and what gives
less or more is refused, so that a small file cannot ask for much memory.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from headrace.errors import DamagedError, DatasetError

MAX_SHARD_BYTES = (1 << 32) - 1
"""Offsets in a shard are of 32 bits."""

_CODECS = {"br": "brotli", "bz2": "bz2", "gz": "gzip", "zstd": "zstd", "snappy": "snappy"}
_SNAPPY_MOST = 32  # times; its longest copy, 64 bytes, takes 3
_FAILURES = (OSError, ValueError, pa.ArrowException)


def codec_of(compression: str, where: str) -> str:
    """Arrow's name of a compression such as `zstd:3`. Raises DatasetError if there is none."""
    codec = _CODECS.get(compression.partition(":")[0])
    if codec is None:
        raise DatasetError(
            f"{where}: the compression {compression!r} is not known, only {', '.join(_CODECS)}: unpack the shards"
        )
    return codec


class Unpacking:
    """What a compressed shard unpacks to, read from its start on; `read` raises DamagedError."""

    def __init__(self, stored: memoryview, codec: str, num_bytes: int, name: str) -> None:
        """`num_bytes` is the length that it has to have; `name` is the shard's, for messages."""
        self._num_bytes, self._codec, self._name = num_bytes, codec, name
        self._at = 0
        try:
            self._stream = _open(stored, codec, num_bytes)
        except _FAILURES as err:
            raise self._error(err) from err

    def read(self, length: int) -> bytes:
        """The next bytes: fewer at the end, which comes where it has to."""
        try:
            data = bytes(self._stream.read(length))
        except _FAILURES as err:
            raise self._error(err) from err
        self._at += len(data)
        if self._at > self._num_bytes or (not data and length and self._at < self._num_bytes):
            raise self._error(f"it gives {'more' if data else 'fewer'} bytes than {self._num_bytes:,}")
        return data

    def read_all(self) -> memoryview:
        """Everything, in a buffer of its own."""
        buffer = np.empty(self._num_bytes, np.uint8)  # which takes memory only as far as it is filled
        view = memoryview(buffer)
        while chunk := self.read(_CHUNK_BYTES):
            view[self._at - len(chunk) : self._at] = chunk
        return view

    def _error(self, reason: object) -> DamagedError:
        shown = " ".join(str(reason).split())
        return DamagedError(f"{self._name} does not unpack as {self._codec}: {shown}; restore it")


_CHUNK_BYTES = 1 << 20


def _open(stored: memoryview, codec: str, num_bytes: int) -> BinaryIO | Any:
    if codec != "snappy":
        return pa.input_stream(pa.py_buffer(stored), compression=codec)
    claimed = _snappy_length(stored)
    if claimed != num_bytes or claimed > _SNAPPY_MOST * len(stored):
        raise ValueError(f"{len(stored):,} bytes that claim to be {claimed:,}, where {num_bytes:,} are expected")
    return pa.BufferReader(pa.Codec(codec).decompress(pa.py_buffer(stored), decompressed_size=num_bytes))


def _snappy_length(stored: memoryview) -> int:
    """The length at the start of a raw snappy block, 7 bits a byte, the low ones first."""
    length = 0
    for place, byte in enumerate(stored[:5]):
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return length
    raise ValueError("it does not begin with a length")
