"""A shard read forward, once: its bytes, unpacked where it is packed, and the checksums of what is stored.

Packed shards unpack piece by piece here, so that reading one through takes the memory of one record, whatever the file
claims to hold.
"""

from __future__ import annotations

import io
from typing import Any

import xxhash

from headrace.errors import DamagedError, DatasetError
from headrace.formats.format import ScanOptions
from headrace.formats.records.frames import Frame, Frames
from headrace.formats.unpacking import UnpackError, codec_of, unpacked, unpacked_head
from headrace.storage import File

_CHUNK_BYTES = 1 << 20
_PART_BYTES = 8 << 20
_MAGIC_BYTES = 6
SNIFFED = "sniffed"


class ShardStream:
    """The content of a shard from its start on, for one reader."""

    def __init__(self, file: File, options: ScanOptions, codec: str | None = SNIFFED) -> None:
        """`codec` is the packing of the whole file, None if it is not packed; or it follows from how the file begins.

        Going by that is right for text only: any bytes may be the length that another file begins with.
        """
        self.name = file.name
        self._options = options
        self._stored = _Stored(file)
        self.codec = codec_of(self._stored.head()) if codec == SNIFFED else codec
        self._content: Any = self._stored
        if self.codec is not None:
            self._content = io.BufferedReader(unpacked(self._stored, self.codec), _CHUNK_BYTES)
        self.at = 0
        """How many bytes of the content have been read."""

    def read(self, num_bytes: int) -> bytes:
        """The next bytes; fewer, or none, only at the end. Raises DamagedError if the packing is broken or cut off."""
        try:
            data = self._read(num_bytes)
        except UnpackError as err:
            raise DamagedError(
                f"{self.name} does not unpack behind byte {self.at:,} of its content ({err}); restore it"
            ) from err
        self.at += len(data)
        if self.codec is not None and self.at > self._options.max_unpacked_bytes:
            raise DatasetError(
                f"{self.name} unpacks to more than max_unpacked_bytes={self._options.max_unpacked_bytes:,}: unpack it, "
                "or cut it up"
            )
        return data

    def _read(self, num_bytes: int) -> bytes:
        """A long read in parts: it takes its memory at once, and a wrong length may ask for any."""
        data: bytes = self._content.read(min(num_bytes, _PART_BYTES))
        if len(data) < _PART_BYTES:
            return data
        parts, left = [data], num_bytes - len(data)
        while left and (data := self._content.read(min(left, _PART_BYTES))):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def digest(self) -> str:
        """The xxh3_128 of the whole file, once its content has been read to the end."""
        return self._stored.digest.hexdigest()

    def frames(self, num_samples: int) -> Frames | None:
        """The whole file as one frame, once its content has been read to the end; None if it is not packed."""
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


def content_head(head: bytes, num_bytes: int) -> bytes:
    """What a file's first bytes hold, unpacked as far as they go if they are packed."""
    codec = codec_of(head)
    return head[:num_bytes] if codec is None else unpacked_head(head, codec, num_bytes)


class _Stored:
    """The file as it is stored, digested on the way."""

    closed = False
    """What pyarrow asks of a file."""

    def __init__(self, file: File) -> None:
        self._stream = file.stream()
        self.digest, self.checksum = xxhash.xxh3_128(), xxhash.xxh3_64()
        self.at = 0

    def head(self) -> bytes:
        """The first bytes, which are still to be read."""
        return self._stream.peek(_MAGIC_BYTES)[:_MAGIC_BYTES]

    def read(self, num_bytes: int) -> bytes:
        data = self._stream.read(num_bytes)
        self.digest.update(data)
        self.checksum.update(data)
        self.at += len(data)
        return data

    def close(self) -> None:
        self._stream.close()
