"""The index of an MDS shard: where each sample lies, its checksum and key, and the columns, so that nothing else of the
dataset has to be looked at to read it.

A plain shard is read by ranges. A shard that is compressed is one piece: it is read, checked and unpacked as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import orjson
import xxhash

from headrace.errors import DamagedError, DatasetError
from headrace.formats.arrow import Column, IndexFile, index_to_bytes
from headrace.formats.columns import I64, U64, Strings
from headrace.formats.fields import Field
from headrace.formats.index import Opened, OpenedRange
from headrace.formats.mds.columns import Columns
from headrace.formats.mds.compression import MAX_SHARD_BYTES, codec_of, unpack_shard
from headrace.formats.spans import SpansIndex
from headrace.storage import quoted

_COLUMNS = (("key", "text"), ("offset", "int64"), ("length", "int64"), ("checksum", "uint64"))
_CHECKSUM = re.compile(r"[0-9a-f]{16}")


class MdsIndex(SpansIndex):
    """The index of a plain shard."""

    format: ClassVar[str] = "mds"

    def __init__(
        self,
        shard_bytes: int,
        stem: str,
        columns: Columns,
        keys: Strings | None,
        offsets: I64,
        lengths: I64,
        checksums: U64,
    ) -> None:
        """`stem` begins the keys where no column has them; then `keys` is None."""
        super().__init__(shard_bytes, offsets, lengths, checksums)
        self.columns = columns
        self._stem, self._keys = stem, keys

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.shard_bytes, self._stem, self.columns.pairs, self._keys, *self._spans)

    @property
    def nbytes(self) -> int:
        return (self._keys.nbytes if self._keys is not None else 0) + sum(array.nbytes for array in self._spans)

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.columns.fields

    def key(self, i: int) -> str:
        return f"{self._stem}:{i}" if self._keys is None else self._keys[i]

    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        """Sample i; its values are made here. Raises DamagedError for one that its column cannot have."""
        at = self._offsets[i] - base
        return self.columns.sample(data[at : at + self._lengths[i]], self.key(i))

    def to_file(self) -> bytes:
        offsets, lengths, checksums = self._spans
        keys = Strings.of([""] * len(lengths)) if self._keys is None else self._keys
        table: dict[str, Column] = {"key": keys, "offset": offsets, "length": lengths, "checksum": checksums}
        return index_to_bytes(self.format, table, self._facts())

    @classmethod
    def from_file(cls, data: memoryview, name: str, shard_bytes: int) -> MdsIndex:
        """The index that a file holds, of either kind of shard.

        Raises ManifestError if it is malformed or reaches outside the shard.
        """
        file = IndexFile(data, name, cls.format, _COLUMNS)
        columns = _columns(file, name)
        keys = file.strings("key") if columns.has_keys else None
        arrays = file.numbers("offset"), file.numbers("length"), file.numbers("checksum")
        compression = file.fact("compression")
        if not compression:
            within = shard_bytes
            index = cls(shard_bytes, file.fact("stem"), columns, keys, *arrays)
        else:
            within = _unpacked_bytes(file)
            packed = _packed(file, compression, within)
            index = CompressedIndex(shard_bytes, file.fact("stem"), columns, keys, *arrays, packed)
        if not _lie_in_a_row(*arrays[:2], within):
            raise file.error(f"speaks of bytes outside its shard of {within:,} bytes")
        return index

    def _facts(self) -> dict[str, str]:
        return {"stem": self._stem, "columns": orjson.dumps(self.columns.pairs).decode(), "compression": ""}


class CompressedIndex(MdsIndex):
    """The index of a compressed shard; offsets count in what it unpacks to."""

    is_ranged = False

    def __init__(
        self,
        shard_bytes: int,
        stem: str,
        columns: Columns,
        keys: Strings | None,
        offsets: I64,
        lengths: I64,
        checksums: U64,
        packed: tuple[str, int, int],
    ) -> None:
        """`packed` is the compression, what the shard unpacks to in bytes, and the xxh3_64 of the shard as stored."""
        super().__init__(shard_bytes, stem, columns, keys, offsets, lengths, checksums)
        self._packed = packed

    def __reduce__(self) -> tuple[Any, ...]:
        restored, values = super().__reduce__()
        return restored, (*values, self._packed)

    @property
    def unpacked_bytes(self) -> int:
        return self._packed[1]

    def extent(self, first: int, last: int) -> tuple[int, int]:
        return (0, self.shard_bytes) if first < last else (0, 0)

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        if first >= last:
            return OpenedRange(self, 0, data, {})
        compression, num_bytes, expected = self._packed
        name = f"shard {quoted(self._stem)}"
        checksum = xxhash.xxh3_64_intdigest(data)
        if checksum != expected:
            raise DamagedError(f"{name} is damaged: its checksum is {checksum:016x}, not {expected:016x}; restore it")
        unpacked = unpack_shard(data, codec_of(compression, name), num_bytes, name)
        base, length = super().extent(first, last)
        opened = OpenedRange(self, 0, unpacked, self.damage(first, last, unpacked[base : base + length]))
        opened.num_bytes = num_bytes
        return opened

    def _facts(self) -> dict[str, str]:
        compression, num_bytes, checksum = self._packed
        packed = {"compression": compression, "unpacked_bytes": str(num_bytes), "stored_xxh3_64": f"{checksum:016x}"}
        return super()._facts() | packed


def _restored(kind: type[MdsIndex], shard_bytes: int, stem: str, pairs: Sequence[tuple[str, str]], *rest: Any) -> Any:
    return kind(shard_bytes, stem, Columns(pairs, stem), *rest)


def _columns(file: IndexFile, name: str) -> Columns:
    try:
        pairs = [(str(column), str(encoding)) for column, encoding in orjson.loads(file.fact("columns"))]
        return Columns(pairs, quoted(name))
    except (ValueError, TypeError, DatasetError) as err:
        raise file.error(f"does not list its columns ({err})") from err


def _unpacked_bytes(file: IndexFile) -> int:
    text = file.fact("unpacked_bytes")
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_SHARD_BYTES):
        raise file.error(f"has a shard that unpacks to {text[:20]!r} bytes")
    return int(text)


def _packed(file: IndexFile, compression: str, num_bytes: int) -> tuple[str, int, int]:
    checksum = file.fact("stored_xxh3_64")
    try:
        codec_of(compression, "it")
    except DatasetError as err:
        raise file.error(f"is of no known compression ({compression!r})") from err
    if not _CHECKSUM.fullmatch(checksum):
        raise file.error("does not say the checksum of its shard")
    return compression, num_bytes, int(checksum, 16)


def _lie_in_a_row(offsets: I64, lengths: I64, within: int) -> bool:
    """Whether every range lies inside `within` bytes, and behind the one before; sums cannot overflow."""
    inside = (offsets >= 0) & (lengths >= 0) & (lengths <= within) & (offsets <= within - lengths)
    return bool(np.all(inside)) and bool(np.all(offsets[1:] >= (offsets + lengths)[:-1]))
