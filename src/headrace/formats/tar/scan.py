"""One pass over an ordinary tar, compressed or not: its members become samples, with checksums on the way.

Nothing is unpacked to disk and no link is followed: members that are not ordinary files are passed over.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Protocol

import xxhash

from headrace.errors import DamagedError, DatasetError, OptionError
from headrace.formats.format import ScanOptions
from headrace.formats.index import StoredIndex
from headrace.formats.shards import Shard
from headrace.formats.tar.index import REPACK, CompressedTarIndex, TarIndex, TarRows
from headrace.formats.tar.names import split_name
from headrace.formats.tar.ustar import (
    BLOCK_BYTES,
    END,
    Header,
    TarError,
    check_global,
    extend,
    parse_extension,
    parse_header,
)
from headrace.formats.unpacking import UnpackError, codec_of, unpacked
from headrace.storage import File, quoted

_CHUNK_BYTES = 1 << 20
_MAX_EXTENSION_BYTES = 1 << 20


def scan_tar(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[StoredIndex, Shard]:
    """The index of an ordinary tar, made in one pass over the file, and its row.

    Raises DamagedError if the tar is cut off or broken, DatasetError if its samples are not adjacent or it unpacks to
    too much.
    """
    if options.dtype is not None:
        raise OptionError(f"dtype is for token files (.bin), and {file.name} is a tar: leave it out")
    with file.stream() as stream:
        stored = _Stored(stream)
        codec = codec_of(stored.head(BLOCK_BYTES))
        if codec is None:
            tar = _Scan(stored, file.name).run()
            index: StoredIndex = tar
        else:
            tar = _Scan(_Unpacked(stored, codec, file.name, options.max_unpacked_bytes), file.name).run()
            index = CompressedTarIndex(stored.at, codec, tar)
    digest = stored.digest.hexdigest()
    return index, Shard("", index.num_samples, stored.at, digest, "", unpacked_bytes=index.unpacked_bytes)


class _Readable(Protocol):
    def read(self, length: int, /) -> bytes:
        """The next bytes, fewer at the end only."""


class _Stored:
    """The file as it is stored, digested and counted on the way."""

    closed = False  # what Arrow asks of a file

    def __init__(self, stream: io.BufferedReader) -> None:
        self.digest = xxhash.xxh3_128()
        self.at = 0
        self._stream = stream
        self._head = b""

    def head(self, length: int) -> bytes:
        """The first bytes, to be looked at: they are yet to be read."""
        self._head = self._stream.read(length)
        return self._head

    def read(self, length: int) -> bytes:
        data, self._head = self._head[:length], self._head[length:]
        if len(data) < length:
            data += self._stream.read(length - len(data))
        self.digest.update(data)
        self.at += len(data)
        return data

    def close(self) -> None:
        """The stream is the caller's."""


class _Unpacked:
    """What a compressed file unpacks to, up to a bound."""

    def __init__(self, stored: _Stored, codec: str, name: str, max_bytes: int) -> None:
        self._stored, self._codec, self._name, self._left = stored, codec, name, max_bytes
        self._stream = io.BufferedReader(unpacked(stored, codec), _CHUNK_BYTES)

    def read(self, length: int) -> bytes:
        try:
            data = self._stream.read(length)
        except UnpackError as err:
            raise DamagedError(
                f"{self._name} is damaged: before byte {self._stored.at:,} it stops to unpack as {self._codec} "
                f"({err}); restore it"
            ) from err
        self._left -= len(data)
        if self._left < 0:
            raise DatasetError(f"{self._name} unpacks to too much to be read as a whole: {REPACK}")
        return data


class _Scan:
    """Members to samples."""

    def __init__(self, stream: _Readable, name: str) -> None:
        self._stream, self._name = stream, name
        self._at = 0
        self._rows = TarRows()
        self._seen: set[str] = set()
        self._key: str | None = None
        self._members: list[tuple[str, int, int]] = []
        self._start = 0
        self._checksum = xxhash.xxh3_64()

    def run(self) -> TarIndex:
        """Scan to the end of the stream."""
        while (block := self._read(BLOCK_BYTES)) != END[:BLOCK_BYTES]:
            try:
                self._take_member(block)
            except TarError as err:
                near = f"near byte {self._at - BLOCK_BYTES:,}"
                raise DamagedError(f"{self._name} is not a whole tar: {near}, {err}") from err
        self._close_sample(self._at - BLOCK_BYTES)
        self._check_end()
        return self._rows.index(self._at)

    def _take_member(self, block: bytes) -> None:
        start, heading, extension = self._at - BLOCK_BYTES, [block], dict[str, str]()
        header, left = parse_header(block), _MAX_EXTENSION_BYTES
        while header.is_extension:
            left -= header.data_bytes + BLOCK_BYTES
            if left < 0:
                raise TarError(f"extended headers of more than {_MAX_EXTENSION_BYTES:,} bytes")
            data = self._read(header.data_bytes)
            extension |= parse_extension(header, data)
            block = self._read(BLOCK_BYTES)
            heading += (data, block)
            header = parse_header(block)
        if header.is_global and extension:
            raise TarError("an extended header is not followed by its member")
        header = extend(header, extension)
        self._enter(header, start)
        for part in heading:
            self._checksum.update(part)
        if header.is_global:
            self._take_global(header)
        else:
            self._pass_over(header.data_bytes)

    def _take_global(self, header: Header) -> None:
        if header.size > _MAX_EXTENSION_BYTES:
            raise TarError(f"extended headers of more than {_MAX_EXTENSION_BYTES:,} bytes")
        data = self._read(header.data_bytes)
        self._checksum.update(data)
        check_global(data[: header.size])

    def _enter(self, header: Header, start: int) -> None:
        named = split_name(header.name) if header.is_regular else None
        if named is None:
            return
        key, field = named
        if key != self._key:
            self._open_sample(key, start)
        if any(field == name for name, _, _ in self._members):
            raise DatasetError(f"{self._name}: sample {quoted(key)} has the field {field!r} twice; rename one of them")
        self._members.append((field, self._at - self._start, header.size))

    def _open_sample(self, key: str, start: int) -> None:
        self._close_sample(start)
        if key in self._seen:
            raise DatasetError(
                f"{self._name}: the key {quoted(key)} comes back after other keys; files of one sample must be "
                "neighbours: make the tar from sorted names (tar --sort=name)"
            )
        self._seen.add(key)
        self._key, self._start, self._members = key, start, []
        self._checksum = xxhash.xxh3_64()

    def _close_sample(self, end: int) -> None:
        if self._key is not None:
            checksum = self._checksum.intdigest()
            self._rows.add(self._key, self._start, end - self._start, checksum, self._members)

    def _pass_over(self, length: int) -> None:
        while length:
            chunk = self._read(min(length, _CHUNK_BYTES))
            self._checksum.update(chunk)
            length -= len(chunk)

    def _check_end(self) -> None:
        if self._read(BLOCK_BYTES) != END[:BLOCK_BYTES]:
            raise DamagedError(f"{self._name} is not a whole tar: a single zero block at byte {self._at - 1024:,}")
        while chunk := self._stream.read(_CHUNK_BYTES):
            self._at += len(chunk)
            if chunk.strip(b"\0"):
                raise DamagedError(
                    f"{self._name} has data behind its end, which other readers would pass over in silence: "
                    "tars joined by cat must be joined by tar --concatenate"
                )

    def _read(self, length: int) -> bytes:
        data = self._stream.read(length)
        self._at += len(data)
        if len(data) < length:
            raise DamagedError(
                f"{self._name} is cut short: it ends at byte {self._at:,} "
                f"{'without the two zero blocks that end a tar' if not data else 'inside a member'}; restore it"
            )
        return data
