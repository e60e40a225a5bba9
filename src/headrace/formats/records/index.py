"""Records: samples one behind the other in a file, each known by its place, its length and its checksum.

TFRecord, LitData, JSONL and CSV shards differ in what a record means; where records lie, how they are checked and how
that is kept is the same. A shard is read by ranges, or it holds *frames*: packed bytes that are unpacked as a whole
(`.jsonl.gz` is one frame), and then places count within a frame's unpacked bytes.

A record that does not read right when the shard is first read through is a *damaged* one: it stays a sample, so that
the others keep their numbers, and its reason is kept.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import orjson

from headrace.errors import DamagedError
from headrace.formats.arrow import Column, IndexFile, index_to_bytes
from headrace.formats.checking import Checked
from headrace.formats.columns import I64, U64, Strings
from headrace.formats.fields import Field, fields_from_json
from headrace.formats.index import Opened, OpenedRange, ShardIndex
from headrace.formats.records.frames import Frames, OpenedFrames
from headrace.formats.shards import Shard
from headrace.formats.spans import SpansIndex
from headrace.formats.stems import key_stem

MOST_DAMAGED = 1000
"""More broken records than this in one shard, and it is refused: it is something else than it seems."""

_COLUMNS = (("key", "text"), ("offset", "int64"), ("length", "int64"), ("checksum", "uint64"))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Where the records of a shard lie."""

    stem: str
    """Record i without a key of its own has the key `stem:i`."""
    keys: Strings | None
    """None: no record has a key of its own."""
    offsets: I64
    """In the shard, or in the unpacked frame that the record lies in."""
    lengths: I64
    checksums: U64
    """xxh3_64 of each record; 0 where its frame has one."""
    damage: Mapping[int, str]
    """Records that were broken when the shard was first read through, and the reason."""

    def key(self, i: int) -> str:
        """The key of record i."""
        return f"{self.stem}:{i}" if self.keys is None else self.keys[i]


class RecordsIndex(SpansIndex):
    """The index of a shard of records. A subclass says what a record means."""

    def __init__(
        self,
        shard_bytes: int,
        rows: Rows,
        fields: Mapping[str, Field],
        facts: Mapping[str, Any],
        frames: Frames | None = None,
    ) -> None:
        """`facts` is a JSON object: what the format must know to read a record. Without frames the shard is ranged."""
        super().__init__(shard_bytes, rows.offsets, rows.lengths, rows.checksums)
        self.is_ranged = frames is None
        self._rows, self._own_fields, self._facts, self._frames = rows, dict(fields), dict(facts), frames
        self._reads_as: Mapping[str, Field] = self._own_fields
        self._pieces: tuple[ShardIndex, ...] = (self,) if frames is None else frames.pieces(self)
        self._prepare()

    def __reduce__(self) -> tuple[Any, ...]:
        made = (self.shard_bytes, self._rows, self._own_fields, self._facts, self._frames)
        return type(self), made, {"reads_as": dict(self._reads_as)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.read_as(state["reads_as"])

    @abstractmethod
    def _decoded(self, i: int, record: memoryview) -> dict[str, Any]:
        """The fields of a whole record, `__key__` aside."""

    def read_as(self, fields: Mapping[str, Field]) -> Self:
        """Give values as the types of the whole dataset's fields say, where shards differ. Returns the index itself.

        For whoever reads an index, before it is shared: a column of whole numbers is one of floats if another shard
        has floats in it.
        """
        self._reads_as = {name: fields.get(name, own) for name, own in self._own_fields.items()}
        self._prepare()
        return self

    def _prepare(self) -> None:
        """Make ready for reading; `_reads_as` has changed."""

    @property
    def nbytes(self) -> int:
        keys = 0 if self._rows.keys is None else self._rows.keys.nbytes
        frames = 0 if self._frames is None else self._frames.nbytes
        return keys + frames + 3 * self._rows.offsets.nbytes

    @property
    def fields(self) -> Mapping[str, Field]:
        return self._own_fields

    @property
    def unpacked_bytes(self) -> int:
        return 0 if self._frames is None else self._frames.unpacked_bytes

    @property
    def pieces(self) -> Sequence[ShardIndex]:
        return self._pieces

    def key(self, i: int) -> str:
        return self._rows.key(i)

    def extent(self, first: int, last: int) -> tuple[int, int]:
        return super().extent(first, last) if self._frames is None else self._frames.extent(first, last)

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        damage = self.damage(first, last, data)
        if self._frames is None:
            return OpenedRange(self, self.extent(first, last)[0], data, damage)
        return OpenedFrames(self, self._frames, damage, self._frames.unpacked(first, last, data))

    def damage(self, first: int, last: int, data: memoryview) -> dict[int, str]:
        known = {i: reason for i, reason in self._rows.damage.items() if first <= i < last}
        return known if self._frames is not None else known | super().damage(first, last, data)

    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        at = self._offsets[i] - base
        try:
            return {"__key__": self._rows.key(i), **self._decoded(i, data[at : at + self._lengths[i]])}
        except (ValueError, LookupError) as err:
            # What was read when the index was made reads again: only an index of something else leads here.
            raise DamagedError(f"what its index says of sample {i} is not so ({err}): index the dataset again") from err

    def to_file(self) -> bytes:
        rows = self._rows
        columns: dict[str, Column] = {
            "key": rows.keys or Strings(np.zeros(len(rows.offsets) + 1, np.int64), np.zeros(0, np.uint8)),
            "offset": rows.offsets,
            "length": rows.lengths,
            "checksum": rows.checksums,
        }
        facts = {
            "stem": rows.stem,
            "has_keys": rows.keys is not None,
            "damage": {str(i): reason for i, reason in rows.damage.items()},
            "fields": {name: field.to_json() for name, field in self._own_fields.items()},
            "frames": None if self._frames is None else self._frames.to_json(),
            "reading": self._facts,
        }
        return index_to_bytes(self.format, columns, {"records": orjson.dumps(facts).decode()})

    @classmethod
    def from_file(cls, data: memoryview, name: str, shard_bytes: int) -> Self:
        """The index that a file holds. Raises ManifestError if it is malformed or reaches outside the shard."""
        file = IndexFile(data, name, cls.format, _COLUMNS)
        try:
            facts = Checked(orjson.loads(file.fact("records")), name)
        except orjson.JSONDecodeError as err:
            raise file.error(f"has facts that are not JSON ({err})") from err
        keys = file.strings("key") if facts["has_keys"].value is True else None
        columns = (file.numbers("offset"), file.numbers("length"), file.numbers("checksum"))
        rows = Rows(facts["stem"].text(), keys, *columns, _damage(facts["damage"], file.num_rows))
        frames = facts.get("frames").optional(lambda item: Frames.from_json(item, file.num_rows, shard_bytes))
        _check_bounds(rows, frames, shard_bytes, file)
        return cls._made(shard_bytes, rows, fields_from_json(facts["fields"]), facts["reading"], frames)

    @classmethod
    def _made(
        cls, shard_bytes: int, rows: Rows, fields: Mapping[str, Field], reading: Checked, frames: Frames | None
    ) -> Self:
        """The index with facts out of a file, which must be checked: they are input like any other."""
        if not isinstance(reading.value, dict):
            raise reading.error("must be an object")
        return cls(shard_bytes, rows, fields, reading.value, frames)

    def row(self, digest: str) -> Shard:
        """The manifest's row of this shard, whose xxh3_128 is `digest`; name and index checksum are to be filled in."""
        counts = tuple(piece.num_samples for piece in self.pieces)
        pieces = counts if len(counts) > 1 else ()
        return Shard("", self.num_samples, self.shard_bytes, digest, "", pieces, self.unpacked_bytes)


class RowsBuilder:
    """Rows as they are found, one record after the other."""

    def __init__(self, file: str, name: str) -> None:
        """`file` is the shard's name in the dataset, `name` what it is called in messages."""
        self.damage: dict[int, str] = {}
        self._name, self._stem = name, key_stem(file)
        self._offsets, self._lengths, self._checksums = array("q"), array("q"), array("Q")
        self._key_ends, self._key_text = array("q", [0]), bytearray()

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, offset: int, length: int, checksum: int = 0, key: str | None = None) -> None:
        """Add a record."""
        if key is not None:
            self._add_keys(len(self))
            self._add_key(key)
        self._offsets.append(offset)
        self._lengths.append(length)
        self._checksums.append(checksum)

    def mark(self, i: int, reason: str) -> None:
        """Note record i, or the one to be added next, as broken. Raises DamagedError if there are too many of them."""
        self.damage[i] = reason
        if len(self.damage) > MOST_DAMAGED:
            first, why = next(iter(self.damage.items()))
            raise DamagedError(
                f"{self._name} has more than {MOST_DAMAGED:,} broken records, the first is number {first:,}: {why}; "
                "restore it, or write it anew"
            )

    def rows(self) -> Rows:
        """All rows. Raises DamagedError if every record is broken: then the file is not what it was taken for."""
        if self.damage and len(self.damage) == len(self):
            raise DamagedError(f"{self._name}: all records are broken, the first one like this: {self.damage[0]}")
        keys = None
        if len(self._key_ends) > 1:
            self._add_keys(len(self))
            keys = Strings(np.array(self._key_ends, np.int64), np.frombuffer(bytes(self._key_text), np.uint8))
        columns = (np.array(self._offsets, np.int64), np.array(self._lengths, np.int64))
        return Rows(self._stem, keys, *columns, np.array(self._checksums, np.uint64), self.damage)

    def _add_keys(self, end: int) -> None:
        """Give the records before `end` that have no key of their own the one by their number."""
        for i in range(len(self._key_ends) - 1, end):
            self._add_key(f"{self._stem}:{i}")

    def _add_key(self, key: str) -> None:
        self._key_text += key.encode()
        self._key_ends.append(len(self._key_text))


def _damage(damage: Checked, num_rows: int) -> dict[int, str]:
    found = {}
    for number, reason in damage.items():
        if not number.isascii() or not number.isdigit() or int(number) >= num_rows:
            raise damage.error(f"must name records from 0 to {num_rows - 1}")
        found[int(number)] = reason.text()
    return found


def _check_bounds(rows: Rows, frames: Frames | None, shard_bytes: int, file: IndexFile) -> None:
    within = np.int64(shard_bytes) if frames is None else frames.sizes_of_samples()
    ends_fit = (rows.offsets >= 0) & (rows.lengths >= 0) & (rows.offsets <= within - rows.lengths)
    # Samples of a run are read as one range, so they must lie one behind the other.
    ordered = frames is not None or bool(np.all(rows.offsets[1:] - rows.offsets[:-1] >= rows.lengths[:-1]))
    if not bool(np.all(ends_fit)) or not ordered:
        raise file.error(f"speaks of bytes outside its shard of {shard_bytes:,} bytes")
