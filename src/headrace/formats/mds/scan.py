"""An ordinary MDS shard, gone through once: every length checked, every checksum taken.

A shard is: the number of samples, where each begins and the last ends, a JSON object that says the columns, and the
samples. What it says of itself has to agree with `index.json`, where there is one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import xxhash

from headrace.errors import DamagedError, DatasetError, OptionError
from headrace.formats.columns import I64, U64, Strings
from headrace.formats.format import ScanOptions
from headrace.formats.mds.columns import Columns, MalformedError
from headrace.formats.mds.compression import codec_of, open_shard, unpack_errors
from headrace.formats.mds.hashes import Hashes
from headrace.formats.mds.index import CompressedIndex, MdsIndex
from headrace.formats.mds.listed import VERSION, Listed
from headrace.formats.shards import Shard
from headrace.formats.stems import key_stem
from headrace.storage import File

_CHUNK_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 16 << 20
_WORD = 4  # bytes of a number in the shard's head


def scan_mds(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[MdsIndex, Shard]:
    """The index of an ordinary shard, made in one pass over it, and its row. `hints` may have what `find_mds` listed.

    Raises DamagedError if the shard is cut off, broken, or not what `index.json` says; DatasetError for encodings,
    compressions and hashes that are not read.
    """
    if options.dtype is not None:
        raise OptionError(f"dtype is for token files (.bin), and {file.name} is a shard of MDS: leave it out")
    listed: Listed | None = hints.get("listed")
    stem = key_stem(hints["file"])
    if listed is not None and listed.num_bytes != file.size:
        what = "is cut short" if file.size < listed.num_bytes else "has bytes too many"
        raise DamagedError(
            f"{file.name} {what}: index.json says {listed.num_bytes:,} bytes, {file.size:,} found; restore it"
        )
    if listed is not None and listed.compression is not None:
        return _scan_compressed(file, listed, listed.compression, stem, options)
    hashes = Hashes({} if listed is None else listed.hashes, file.name)
    with file.stream() as stream:
        scan = _Scan(stream, file.size, file.name, hashes)
        table = scan.run(listed)
    index = MdsIndex(file.size, stem, table.columns, *table.parts())
    return index, Shard("", index.num_samples, file.size, scan.digest.hexdigest(), "")


def _scan_compressed(
    file: File, listed: Listed, compression: str, stem: str, options: ScanOptions
) -> tuple[MdsIndex, Shard]:
    codec = codec_of(compression, file.name)
    if listed.raw_bytes > options.max_unpacked_bytes:
        raise DatasetError(
            f"{file.name} unpacks to {listed.raw_bytes:,} bytes, more than max_unpacked_bytes="
            f"{options.max_unpacked_bytes:,}: pack the dataset again (headrace pack)"
        )
    stored = file.read(0, file.size)
    hashes = Hashes(listed.hashes, file.name)
    hashes.update(stored)
    hashes.check()
    with unpack_errors(file.name, codec), open_shard(stored, codec, listed.raw_bytes, file.name) as stream:
        table = _Scan(stream, listed.raw_bytes, file.name, Hashes(listed.raw_hashes, file.name)).run(listed)
    packed = compression, listed.raw_bytes, xxhash.xxh3_64_intdigest(stored)
    index = CompressedIndex(file.size, stem, table.columns, *table.parts(), packed)
    digest = xxhash.xxh3_128_hexdigest(stored)
    return index, Shard("", index.num_samples, file.size, digest, "", unpacked_bytes=listed.raw_bytes)


@dataclass(frozen=True, slots=True)
class _Table:
    """What a pass over a shard found."""

    columns: Columns
    offsets: I64
    """Where each sample begins, and the last one ends."""
    checksums: list[int]
    keys: list[str]

    def parts(self) -> tuple[Strings | None, I64, I64, U64]:
        """What an index is made of: keys (if the shard has any), offsets, lengths and checksums."""
        keys = Strings.of(self.keys) if self.columns.has_keys else None
        return keys, self.offsets[:-1].copy(), np.diff(self.offsets), np.array(self.checksums, np.uint64)


class _Scan:
    """One pass over the bytes of a plain shard, or of what a compressed one unpacks to."""

    def __init__(self, stream: io.IOBase, num_bytes: int, name: str, hashes: Hashes) -> None:
        """`num_bytes` is how many there have to be."""
        self.digest = xxhash.xxh3_128()
        self._stream, self._num_bytes, self._name, self._hashes = stream, num_bytes, name, hashes

    def run(self, listed: Listed | None) -> _Table:
        """Go through to the end, and check the hashes."""
        offsets = self._offsets(None if listed is None else listed.samples)
        columns = self._columns(int(offsets[0]) - _WORD * (len(offsets) + 1), listed)
        table = _Table(columns, offsets, [], [])
        for i, length in enumerate(np.diff(offsets).tolist()):
            try:
                self._take_sample(table, length)
            except MalformedError as err:
                raise self._error(f"sample {i} {err}") from err
        if self._stream.read(1):
            raise self._error(f"it goes on behind its {self._num_bytes:,} bytes")
        self._hashes.check()
        return table

    def _offsets(self, listed_samples: int | None) -> I64:
        num_samples = int.from_bytes(self._read(_WORD), "little")
        if listed_samples is not None and num_samples != listed_samples:
            raise self._error(f"it has {num_samples:,} samples, index.json says {listed_samples:,}")
        head = _WORD * (num_samples + 2)
        if head > self._num_bytes:
            raise self._error(f"{num_samples:,} samples in {self._num_bytes:,} bytes")
        parts: list[I64] = []
        before, left = head, _WORD * (num_samples + 1)
        while left:
            part = np.frombuffer(self._read(min(left, _CHUNK_BYTES)), "<u4").astype(np.int64)
            if part[0] < before or np.any(np.diff(part) < 0):
                raise self._error("its samples do not lie one behind the other")
            parts.append(part)
            before, left = int(part[-1]), left - _WORD * len(part)
        if before != self._num_bytes:
            raise self._error(f"its samples end at byte {before:,} of {self._num_bytes:,}")
        return np.concatenate(parts)

    def _columns(self, config_bytes: int, listed: Listed | None) -> Columns:
        if config_bytes > _MAX_CONFIG_BYTES:
            raise self._error(f"it says its columns in {config_bytes:,} bytes")
        try:
            config = orjson.loads(self._read(config_bytes))
            names, encodings, sizes = (config[f"column_{what}"] for what in ("names", "encodings", "sizes"))
            pairs = tuple(zip(names, encodings, strict=True))
        except (ValueError, KeyError, TypeError) as err:
            raise self._error("it does not say its columns") from err
        if not all(isinstance(text, str) for pair in pairs for text in pair) or config.get("version") != VERSION:
            raise self._error(f"it does not say its columns as version {VERSION} has them")
        if listed is not None and pairs != listed.columns:
            raise self._error("it says other columns than index.json")
        columns = Columns(pairs, self._name)
        if sizes != columns.sizes:
            raise self._error(f"its columns have the sizes {columns.sizes}, it says {str(sizes)[:60]}")
        return columns

    def _take_sample(self, table: _Table, length: int) -> None:
        """Read a sample, some of it at a time if it is large."""
        chunk = self._read(min(length, _CHUNK_BYTES))
        start, end = table.columns.key_range(chunk, length)
        checksum, key, at = xxhash.xxh3_64(chunk), chunk[start:end], len(chunk)
        while at < length:
            chunk = self._read(min(length - at, _CHUNK_BYTES))
            checksum.update(chunk)
            key += chunk[max(0, start - at) : max(0, end - at)]
            at += len(chunk)
        table.checksums.append(checksum.intdigest())
        if table.columns.has_keys:
            table.keys.append(table.columns.key(key))

    def _read(self, length: int) -> bytes:
        data: bytes = self._stream.read(length)
        if len(data) < length:
            raise self._error("it ends too early")
        self.digest.update(data)
        self._hashes.update(data)
        return data

    def _error(self, what: str) -> DamagedError:
        return DamagedError(f"{self._name} is not a whole shard of MDS: {what}; restore it")
