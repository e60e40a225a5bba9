"""A shard read forward, once: its bytes, unpacked where it is packed, and the checksums of what is stored.

Packed shards unpack piece by piece here, so that reading one through takes the memory of one record, whatever the file
claims to hold.
"""

from __future__ import annotations

import io
import zlib
from typing import Any

import pyarrow as pa
import xxhash

from headrace.errors import DamagedError
from headrace.formats.records_frames import Frame, Frames, codec_of
from headrace.storage import File

_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 512


class ShardStream:
    """The content of a shard from its start on, for one reader."""

    def __init__(self, file: File, codec: str | None) -> None:
        """`codec` is the packing of the whole file, one of CODECS, or None if it is not packed."""
        self.name = file.name
        self.codec = codec
        self._stored = _Stored(file)
        self._content = self._stored if codec is None else _unpacking(codec, self._stored, file.name)
        self.at = 0
        """How many bytes of the content have been read."""

    def read(self, num_bytes: int) -> bytes:
        """The next bytes; fewer, or none, only at the end. Raises DamagedError if the packing is broken or cut off."""
        data = self._content.read(num_bytes)
        self.at += len(data)
        return data

    def finish(self) -> str:
        """Read on to the end of the file; returns its xxh3_128."""
        while self._stored.read(_CHUNK_BYTES):
            pass
        return self._stored.digest.hexdigest()

    def frames(self, num_samples: int) -> Frames | None:
        """The whole file as one frame, once all of it has been read; None if it is not packed."""
        if self.codec is None:
            return None
        stored = self._stored
        return Frames(self.codec, [Frame(num_samples, 0, stored.at, stored.checksum.intdigest(), self.at)])

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file that have been read."""
        return self._stored.at

    def __enter__(self) -> ShardStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stored.close()


def unpacked_head(head: bytes, num_bytes: int = _HEAD_BYTES) -> bytes:
    """What a file's first bytes unpack to, as far as they go, if they are packed; else themselves."""
    codec = codec_of(head)
    try:
        if codec == "gzip":
            return zlib.decompressobj(31).decompress(head, num_bytes)
        if codec == "zstd":
            return _zstd_head(head, num_bytes)
    except zlib.error:
        return b""
    return head[:num_bytes]


class _Stored:
    """The file as it is stored, digested on the way."""

    def __init__(self, file: File) -> None:
        self._stream = file.stream()
        self.digest, self.checksum = xxhash.xxh3_128(), xxhash.xxh3_64()
        self.at = 0

    closed = False  # what pyarrow asks of a file

    def read(self, num_bytes: int) -> bytes:
        data = self._stream.read(num_bytes)
        self.digest.update(data)
        self.checksum.update(data)
        self.at += len(data)
        return data

    def close(self) -> None:
        self._stream.close()


class _Inflating(io.RawIOBase):
    """What a gzip or zlib file holds; never more than asked for is unpacked."""

    def __init__(self, stored: _Stored, name: str, window_bits: int) -> None:
        self._stored, self._name, self._window_bits = stored, name, window_bits
        self._member = zlib.decompressobj(window_bits)
        self._packed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._member.eof and not self._begin_member():
                return 0
            if not self._packed and not (packed := self._stored.read(_CHUNK_BYTES)):
                raise DamagedError(f"{self._name} is cut short: its packed data ends at byte {self._stored.at:,}")
            try:
                data = self._member.decompress(self._packed or packed, len(buffer))
            except zlib.error as err:
                raise DamagedError(f"{self._name} does not unpack ({err}); restore it") from err
            self._packed = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _begin_member(self) -> bool:
        """Whether another member follows: a gzip file may have several, and zeros behind them."""
        self._packed = self._packed or self._stored.read(_CHUNK_BYTES)
        if not self._packed:
            return False
        if self._packed[0] == 0 or self._window_bits != 31:
            self._check_padding()
            return False
        self._member = zlib.decompressobj(self._window_bits)
        return True

    def _check_padding(self) -> None:
        while self._packed:
            if self._packed.strip(b"\0"):
                raise DamagedError(f"{self._name} has data behind the end of what is packed; restore it")
            self._packed = self._stored.read(_CHUNK_BYTES)


class _Unzstd(io.RawIOBase):
    """What a zstd file holds."""

    def __init__(self, stored: _Stored, name: str) -> None:
        self._name = name
        self._stream = pa.CompressedInputStream(pa.PythonFile(stored, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as err:
            raise DamagedError(f"{self._name} does not unpack ({' '.join(str(err).split())}); restore it") from err
        buffer[: len(data)] = data
        return len(data)


def _unpacking(codec: str, stored: _Stored, name: str) -> io.BufferedReader:
    raw = _Unzstd(stored, name) if codec == "zstd" else _Inflating(stored, name, 31 if codec == "gzip" else 15)
    return io.BufferedReader(raw, _CHUNK_BYTES)


def _zstd_head(head: bytes, num_bytes: int) -> bytes:
    stream = pa.CompressedInputStream(pa.BufferReader(head), "zstd")
    try:
        return bytes(stream.read(num_bytes))
    except OSError:
        return b""
