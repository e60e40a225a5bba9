"""Unpacking compressed bytes: exact about where they end, in bounded memory, whatever they claim of themselves.

A gz, bz2, xz, zst or br file may be several streams one behind the other, as `cat a.gz b.gz` makes it; all of them are
read. A stream that stops early, anything else behind the last one, and a checksum of its own that differs are errors.
What is read is unpacked as it is asked for, so that a small file that unpacks to a vast one costs no memory.
"""

from __future__ import annotations

import io
import lzma
from contextlib import suppress
from typing import Any, Final

import pyarrow as pa

_ARROW: Final = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "br": "brotli"}
CODECS = (*_ARROW, "xz", "snappy")
"""What `unpack` knows; all but snappy (a block of raw snappy, which has no end of its own) can be streamed too."""

_MAGIC = {"gz": b"\x1f\x8b\x08", "bz2": b"BZh", "xz": b"\xfd7zXZ\0", "zst": b"\x28\xb5\x2f\xfd"}
_CHUNK_BYTES = 1 << 20
_XZ_MEMORY_BYTES = 256 << 20  # its window may claim to need 4 GiB; `xz -9` needs 65 MiB
_XZ_PADDING = 4
_XZ_BLOCK_BYTES = 64 << 10
_SNAPPY_MOST = 32  # times as much as it takes: a copy of 64 bytes takes 2 at least


class UnpackError(ValueError):
    """Bytes that do not unpack; the message says why and is put behind the file's name."""


def codec_of(head: bytes | memoryview) -> str | None:
    """The codec that a file's first bytes show, one of gz, bz2, xz and zst; None if they show none."""
    start = bytes(head[:6])
    return next((codec for codec, magic in _MAGIC.items() if start.startswith(magic)), None)


def unpacked(stored: Any, codec: str) -> io.RawIOBase:
    """A stream of what `stored` unpacks to; it gives what was asked for unless it ends, or else raises UnpackError.

    `stored` is a file-like object, read forward as needed and left open, or a bytes-like object. What reading it
    raises comes through. Not to be shared by threads.
    """
    if codec == "xz":
        return _Xz(stored if hasattr(stored, "read") else io.BytesIO(stored))
    return _Arrow(stored, _ARROW[codec])


def unpack(data: bytes | memoryview, codec: str, max_bytes: int) -> memoryview:
    """What `data` unpacks to. Raises UnpackError if it is broken, or more than `max_bytes`.

    Frees the interpreter lock; memory is taken as it is filled.
    """
    if codec == "snappy":
        return _unpack_snappy(data, max_bytes)
    stream, made = unpacked(data, codec), bytearray()
    while chunk := stream.read(min(_CHUNK_BYTES, max_bytes + 1 - len(made))):
        made += chunk
        if len(made) > max_bytes:
            raise UnpackError(f"it unpacks to more than {max_bytes:,} bytes")
    return memoryview(made)


def unpack_exactly(data: bytes | memoryview, codec: str, num_bytes: int) -> memoryview:
    """What `data` unpacks to, which is known to be `num_bytes`. Raises UnpackError; frees the interpreter lock."""
    made = unpack(data, codec, num_bytes)
    if len(made) != num_bytes:
        raise UnpackError(f"it unpacks to {len(made):,} bytes, not {num_bytes:,}")
    return made


def unpacked_head(head: bytes, codec: str, num_bytes: int) -> bytes:
    """Up to `num_bytes` of what a file begins with, as far as its first stored bytes go; none if they do not unpack."""
    with suppress(UnpackError):
        return unpacked(head, codec).read(num_bytes) or b""
    # A long read fails as a whole where the stored bytes stop: once more, byte by byte up to there.
    made, stream = bytearray(), unpacked(head, codec)
    with suppress(UnpackError):
        while len(made) < num_bytes and (byte := stream.read(1)):
            made += byte
    return bytes(made)


class _Arrow(io.RawIOBase):
    """Streams by Arrow's codecs."""

    def __init__(self, stored: Any, codec: str) -> None:
        source = pa.PythonFile(stored, mode="r") if hasattr(stored, "read") else pa.BufferReader(pa.py_buffer(stored))
        self._stream = pa.CompressedInputStream(source, codec)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except (OSError, pa.ArrowException) as err:
            raise UnpackError(" ".join(str(err).split())) from err


class _Xz(io.RawIOBase):
    """Streams of xz, which Arrow does not know.

    They are unpacked by blocks of one size, as Arrow does, however much is asked for: so where the stored bytes are
    broken, what can still be read before that does not depend on how it is read.
    """

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self._packed, self._ready = b"", memoryview(b"")
        self._stream = self._begin()
        self._has_begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        at = 0
        while at < len(view) and (self._ready or self._unpack()):
            count = min(len(view) - at, len(self._ready))
            view[at : at + count] = self._ready[:count]
            self._ready = self._ready[count:]
            at += count
        return at

    def _unpack(self) -> bool:
        """Unpack the next block; False at the end."""
        data = b""
        while not data:
            if self._stream.eof and not self._begin_next():
                return False
            if self._stream.needs_input and not self._packed and not self._fill():
                if self._has_begun:
                    raise UnpackError("the xz stream is cut short")
                return False
            try:
                data = self._stream.decompress(self._packed, _XZ_BLOCK_BYTES)
            except lzma.LZMAError as err:
                raise UnpackError(f"{err}") from err
            self._has_begun = True
            self._packed = self._stream.unused_data
        self._ready = memoryview(data)
        return True

    def _begin(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    def _begin_next(self) -> bool:
        """Whether another stream follows; between two, and at the end, there may be zeros, four by four."""
        while (self._packed or self._fill()) and self._packed[0] == 0:
            while len(self._packed) < _XZ_PADDING and (more := self._stored.read(_CHUNK_BYTES)):
                self._packed += more
            if self._packed[:_XZ_PADDING] != bytes(_XZ_PADDING):
                raise UnpackError("there is something else behind the end of the xz stream")
            self._packed = self._packed[_XZ_PADDING:]
        if self._packed:
            self._stream = self._begin()
        return bool(self._packed)

    def _fill(self) -> bool:
        self._packed = bytes(self._stored.read(_CHUNK_BYTES))
        return bool(self._packed)


def _unpack_snappy(data: bytes | memoryview, max_bytes: int) -> memoryview:
    length = _snappy_length(data)
    if length > max_bytes:
        raise UnpackError(f"it unpacks to more than {max_bytes:,} bytes")
    if length > _SNAPPY_MOST * len(data):
        raise UnpackError(f"{len(data):,} bytes of snappy cannot hold the {length:,} that they claim")
    try:
        return memoryview(pa.Codec("snappy").decompress(pa.py_buffer(data), decompressed_size=length))
    except (OSError, pa.ArrowException) as err:
        raise UnpackError(" ".join(str(err).split())) from err


def _snappy_length(data: bytes | memoryview) -> int:
    """What a block begins with: 7 bits a byte, the low ones first; the last byte is below 128."""
    length = 0
    for place, byte in enumerate(data[:5]):
        length |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return length
    raise UnpackError("the block of snappy does not begin with its length")
