"""The index of a Parquet file, and its row groups as pieces.

It keeps the schema, where every chunk (one column of one row group) lies and its checksum, and the keys; so a row group
is one range read, checked before it is unpacked. With some fields only, it is a range or several: what lies between
wanted chunks is not read, if there is much of it.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import orjson
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from headrace.errors import DamagedError, DatasetError, ManifestError, OptionError
from headrace.formats.arrow import Column as IndexColumn
from headrace.formats.arrow import IndexFile, Lists, index_to_bytes
from headrace.formats.checking import Checked
from headrace.formats.columns import I64, U64, Strings, numbered
from headrace.formats.fields import Field, fields_from_json
from headrace.formats.index import Opened, Range, ShardIndex, StoredIndex
from headrace.formats.parquet.columns import Get
from headrace.formats.parquet.fields import column_of, data_columns, missing_files, values_of
from headrace.formats.parquet.footer import MAX_GROUP_BYTES, Chunk, RowGroup
from headrace.formats.parquet.schema import ARROW_ERRORS, Column, FileSchema, one_line
from headrace.formats.parquet.thrift import ThriftError
from headrace.formats.parquet.unpack import Stored, plan_unpacking, unpack
from headrace.formats.table import Table

_COLUMNS = (
    ("samples", "int64"),
    ("memory", "int64"),
    ("chunk", "int64s"),
    ("checksum", "int64s"),
    ("key", "text"),
    ("key_length", "int64s"),
)
_CHUNK = len(Chunk._fields)
_GAP_BYTES = 1 << 20
"""What is read along where it lies between chunks that are wanted: in a store another request costs more."""


@dataclass(frozen=True, slots=True, eq=False)
class RowGroups:
    """The row groups of a file, as columns."""

    samples: I64
    memory: I64
    """What each unpacks to at most, in bytes."""
    chunks: I64
    """(row group, leaf, fact): the facts of a Chunk."""
    checksums: U64
    """(row group, leaf): xxh3_64 of the chunk."""

    @classmethod
    def of(cls, groups: Sequence[RowGroup], memory: I64, checksums: U64) -> RowGroups:
        """The columns of these row groups."""
        chunks = np.array([group.chunks for group in groups], np.int64).reshape(*checksums.shape, _CHUNK)
        return cls(np.array([group.num_rows for group in groups], np.int64), memory, chunks, checksums)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, k: int) -> RowGroup:
        return RowGroup(k, int(self.samples[k]), tuple(Chunk(*facts) for facts in self.chunks[k].tolist()))

    @property
    def starts(self) -> I64:
        """The number of each row group's first row; at the end that of all rows."""
        return np.concatenate(([0], np.cumsum(self.samples)))

    @property
    def nbytes(self) -> int:
        """Memory of all columns, in bytes."""
        return self.samples.nbytes + self.memory.nbytes + self.chunks.nbytes + self.checksums.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What is known of a shard, shared by its pieces."""

    stem: str
    """Begins the keys of samples, where the file has none."""
    shard_bytes: int
    schema: FileSchema
    groups: RowGroups
    fields: Mapping[str, Field]
    classes: Mapping[str, Sequence[str]]
    """What the whole numbers of a field stand for, by field, where the file says it (Hugging Face `datasets`)."""
    keys: Strings | None
    """Of all rows, where the file has them."""

    def key(self, row: int) -> str:
        """The key of a row of the shard."""
        return self.keys[row] if self.keys is not None else f"{self.stem}:{row}"

    def key_column(self, first: int, last: int) -> list[str] | NDArray[np.void]:
        """The keys of some rows of the shard, as a Table has them."""
        if self.keys is None:
            return numbered(self.stem, np.arange(first, last, dtype=np.int64))
        return self.keys.column(first, last)

    @property
    def nbytes(self) -> int:
        """Memory of all this, in bytes."""
        return self.schema.nbytes + self.groups.nbytes + (self.keys.nbytes if self.keys is not None else 0)


class RowGroupIndex(ShardIndex):
    """A row group: the piece of a Parquet shard."""

    format: ClassVar[str] = "parquet"
    is_ranged = False

    def __init__(self, content: Content, group: RowGroup, first_row: int, columns: Sequence[Column]) -> None:
        """`first_row` counts rows of the shard; `columns` are the fields that samples are to have."""
        self.shard_bytes = content.shard_bytes
        self._content, self._group, self._first_row, self._columns = content, group, first_row, tuple(columns)

    @property
    def num_samples(self) -> int:
        return self._group.num_rows

    @property
    def nbytes(self) -> int:
        return self._content.nbytes

    @property
    def sample_bytes(self) -> I64:
        num_rows = self._group.num_rows
        num_bytes = sum(self._group.chunks[number].num_bytes for number in self._leaves()) if num_rows else 0
        return np.full(num_rows, -(-num_bytes // max(1, num_rows)), np.int64)

    def key(self, i: int) -> str:
        return self._content.key(self._first_row + i)

    def key_column(self, first: int, last: int) -> list[str] | NDArray[np.void]:
        return self._content.key_column(self._first_row + first, self._first_row + last)

    def extent(self, first: int, last: int) -> tuple[int, int]:
        ranges = self.ranges(first, last)
        return (ranges[0].offset, ranges[-1].end - ranges[0].offset) if ranges else (0, 0)

    def ranges(self, first: int, last: int) -> Sequence[Range]:
        return _ranges(self._group.chunks[number] for number in self._leaves()) if first < last else []

    def with_fields(self, names: Collection[str]) -> RowGroupIndex:
        wanted = frozenset(names)
        columns = [column for column in self._columns if column.name in wanted]
        return RowGroupIndex(self._content, self._group, self._first_row, columns)

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        if first == last or not self._columns:
            return OpenedRows(self, {}, {}, 0)
        arrays, broken = self._unpacked(Stored(self._group, data, self.ranges(first, last)))
        try:
            gets = {column.name: values_of(column, arrays[column.name]) for column in self._columns}
            damage = {i: reason for i, reason in self._damage(arrays, gets, broken) if first <= i < last}
        except ARROW_ERRORS as err:
            raise DamagedError(f"row group {self._group.number} does not unpack: {one_line(err)}") from err
        num_bytes = sum(array.get_total_buffer_size() for array in arrays.values())
        return OpenedRows(self, gets, damage, num_bytes, partial(self._columns_of, arrays, gets))

    def _columns_of(self, arrays: Mapping[str, pa.Array], gets: Mapping[str, Get]) -> dict[str, NDArray[Any]] | None:
        """Every field as a column of a Table; None if some field has no such column."""
        found = {column.name: column_of(column, arrays[column.name], gets[column.name]) for column in self._columns}
        columns = {name: values for name, values in found.items() if values is not None}
        return columns if len(columns) == len(found) else None

    def _leaves(self) -> Iterator[int]:
        return (number for column in self._columns for number in column.leaves)

    def _unpacked(self, stored: Stored) -> tuple[dict[str, pa.Array], set[str]]:
        self._check(stored)
        schema, k = self._content.schema, self._group.number
        plan, limit = plan_unpacking(schema, self._columns, stored), int(self._content.groups.memory[k])
        if plan.num_bytes > limit:
            raise DamagedError(
                f"row group {k} may unpack to {plan.num_bytes:,} bytes, its index says {limit:,}; restore the one that "
                "is wrong"
            )
        return unpack(schema, self._columns, stored, plan, limit)

    def _check(self, stored: Stored) -> None:
        for number in self._leaves():
            found = xxhash.xxh3_64_intdigest(stored.chunk(number))
            stated = int(self._content.groups.checksums[self._group.number, number])
            if found != stated:
                path = self._content.schema.leaves[number].path
                raise DamagedError(
                    f"the checksum of column {path!r} in row group {self._group.number} is {found:016x}, not "
                    f"{stated:016x}"
                )

    def _damage(
        self, arrays: Mapping[str, pa.Array], gets: Mapping[str, Get], broken: Iterable[str]
    ) -> Iterator[tuple[int, str]]:
        for column in self._columns:
            for i in missing_files(column, arrays[column.name]):
                yield i, f"field {column.name!r} is the path of a file that is not in the dataset"
        for name in broken:
            for i in _broken_texts(gets[name], self._group.num_rows):
                yield i, f"field {name!r} is not UTF-8 text"


def _ranges(chunks: Iterable[Chunk]) -> list[Range]:
    """Where chunks lie, in storage order; those with little between them in one range."""
    spans: list[list[int]] = []
    for chunk in sorted(chunks):
        if spans and chunk.offset - spans[-1][1] <= _GAP_BYTES:
            spans[-1][1] = max(spans[-1][1], chunk.end)
        else:
            spans.append([chunk.offset, chunk.end])
    return [Range(start, end - start) for start, end in spans]


def _broken_texts(get: Get, num_rows: int) -> Iterator[int]:
    for i in range(num_rows):
        try:
            get(i)
        except UnicodeDecodeError:
            yield i


class OpenedRows(Opened):
    """The rows of a row group."""

    def __init__(
        self,
        index: ShardIndex,
        gets: Mapping[str, Get],
        damage: Mapping[int, str],
        num_bytes: int,
        columns: Callable[[], Mapping[str, NDArray[Any]] | None] = lambda: None,
    ) -> None:
        """`columns` makes the columns of a Table of all rows."""
        self.damage, self.num_bytes = damage, num_bytes
        self._index, self._gets, self._make_columns = index, tuple(gets.items()), columns
        self._lock = threading.Lock()

    def table(self, first: int, last: int) -> Table | None:
        with self._lock:  # the runs that share a row group come from several threads
            columns = self._columns
        if columns is None:
            return None
        keys = self._index.key_column(first, last)
        return Table(first, keys, {name: column[first:last] for name, column in columns.items()})

    @cached_property
    def _columns(self) -> Mapping[str, NDArray[Any]] | None:
        return self._make_columns()

    def sample(self, i: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"__key__": self._index.key(i)}
        for name, get in self._gets:
            sample[name] = get(i)
        return sample


class ParquetIndex(StoredIndex):
    """The index of a Parquet file."""

    format: ClassVar[str] = "parquet"
    is_ranged = False

    def __init__(self, content: Content) -> None:
        self.content = content
        self.shard_bytes = content.shard_bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetIndex, (self.content,)

    @property
    def num_samples(self) -> int:
        return int(self.content.groups.samples.sum())

    @property
    def nbytes(self) -> int:
        return self.content.nbytes

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.content.fields

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        return self.content.classes

    @property
    def unpacked_bytes(self) -> int:
        return int(self.content.groups.memory.sum())

    @cached_property
    def pieces(self) -> Sequence[RowGroupIndex]:
        """The row groups that have rows; one without any if none has."""
        columns = [*data_columns(self.content.schema).values()]
        groups, starts = self.content.groups, self.content.groups.starts.tolist()
        filled = [k for k, count in enumerate(groups.samples.tolist()) if count]
        pieces = [RowGroupIndex(self.content, groups[k], starts[k], columns) for k in filled]
        return pieces or [RowGroupIndex(self.content, RowGroup(0, 0, ()), 0, columns)]

    @property
    def sample_bytes(self) -> I64:
        return np.concatenate([piece.sample_bytes for piece in self.pieces])

    def key(self, i: int) -> str:
        return self.content.key(i)

    def extent(self, first: int, last: int) -> tuple[int, int]:
        start, piece = self._piece(first, last)
        return piece.extent(first - start, last - start)

    def ranges(self, first: int, last: int) -> Sequence[Range]:
        start, piece = self._piece(first, last)
        return piece.ranges(first - start, last - start)

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        start, piece = self._piece(first, last)
        return _Moved(piece.open(first - start, last - start, data), start)

    def to_file(self) -> bytes:
        content, groups = self.content, self.content.groups
        texts, lengths = _keys_by_group(content)
        count, leaves = groups.checksums.shape
        starts = np.arange(count + 1, dtype=np.int64) * leaves
        columns: dict[str, IndexColumn] = {
            "samples": groups.samples,
            "memory": groups.memory,
            "chunk": Lists(starts * _CHUNK, groups.chunks.ravel()),
            "checksum": Lists(starts, groups.checksums.ravel().view(np.int64)),
            "key": texts,
            "key_length": lengths,
        }
        facts = {
            "stem": content.stem,
            "schema": base64.b64encode(content.schema.data).decode(),
            "arrow": base64.b64encode(content.schema.arrow).decode(),
            "created_by": base64.b64encode(content.schema.created_by).decode(),
            "fields": orjson.dumps({name: field.to_json() for name, field in content.fields.items()}).decode(),
            "classes": orjson.dumps(dict(content.classes)).decode(),
            "keys": "stored" if content.keys is not None else "numbered",
        }
        return index_to_bytes(self.format, columns, facts)

    @classmethod
    def from_file(cls, data: memoryview, name: str, shard_bytes: int) -> ParquetIndex:
        """The index that a file holds. Raises ManifestError if it is malformed or reaches outside the shard."""
        file = IndexFile(data, name, cls.format, _COLUMNS)
        try:
            raw = [base64.b64decode(file.fact(fact), validate=True) for fact in ("schema", "arrow", "created_by")]
            schema = FileSchema(*raw)
            groups = _groups(file, len(schema.leaves))
            for k in range(len(groups)):
                groups[k].check(schema, shard_bytes)
        except (DatasetError, ThriftError, LookupError, TypeError, ValueError, AttributeError) as err:
            raise file.error(f"holds a schema or row groups that are wrong: {one_line(err)}") from err
        fields, classes = _fields(file, schema), _classes(file)
        return cls(Content(file.fact("stem"), shard_bytes, schema, groups, fields, classes, _keys(file, groups)))

    def _piece(self, first: int, last: int) -> tuple[int, RowGroupIndex]:
        """The row group that samples first .. last-1 lie in, and the number of its first sample."""
        start = 0
        for piece in self.pieces:
            if first < start + piece.num_samples or first == last:
                if last > start + piece.num_samples:
                    break
                return start, piece
            start += piece.num_samples
        raise OptionError(f"samples {first} to {last - 1} do not lie in one row group: read the pieces one by one")


class _Moved(Opened):
    """The rows of a row group, numbered as those of the shard."""

    def __init__(self, opened: Opened, start: int) -> None:
        self.damage = {start + i: reason for i, reason in opened.damage.items()}
        self.num_bytes, self._opened, self._start = opened.num_bytes, opened, start

    def sample(self, i: int) -> dict[str, Any]:
        return self._opened.sample(i - self._start)


def _keys_by_group(content: Content) -> tuple[Strings, Lists]:
    """The keys as they lie in the index file: for each row group one text of all, and their lengths in bytes."""
    ends = content.groups.starts
    if content.keys is None:
        return Strings.of([""] * (len(ends) - 1)), Lists(np.zeros(len(ends), np.int64), np.zeros(0, np.int64))
    return Strings(content.keys.starts[ends], content.keys.text), Lists(ends, np.diff(content.keys.starts))


def _keys(file: IndexFile, groups: RowGroups) -> Strings | None:
    texts, lengths, ends = file.strings("key"), file.lists("key_length"), groups.starts
    if file.fact("keys") == "numbered":
        return None
    starts = np.concatenate(([0], np.cumsum(lengths.values)))
    if not np.array_equal(lengths.starts, ends) or not np.array_equal(starts[ends], texts.starts):
        raise file.error("does not have the keys of its rows")
    if np.any(lengths.values < 0) or not _are_texts(texts.text, starts):
        raise file.error("has keys that are no text")
    return Strings(starts, texts.text)


def _are_texts(text: Any, starts: I64) -> bool:
    """Whether the text is cut between characters: bytes 10xxxxxx only go on with one."""
    inner = starts[:-1][np.diff(starts) > 0]
    return not np.any((text[inner] & 0xC0) == 0x80)


def _groups(file: IndexFile, num_leaves: int) -> RowGroups:
    samples, memory = file.numbers("samples"), file.numbers("memory")
    chunks, checksums = file.lists("chunk"), file.lists("checksum")
    starts = np.arange(file.num_rows + 1, dtype=np.int64) * num_leaves
    if not np.array_equal(checksums.starts, starts) or not np.array_equal(chunks.starts, starts * _CHUNK):
        raise ValueError("not every column has a chunk and a checksum")
    if np.any((memory < 0) | (memory > MAX_GROUP_BYTES)):
        raise ValueError(f"row groups unpack to more than {MAX_GROUP_BYTES:,} bytes")
    shape = file.num_rows, num_leaves
    sums = checksums.values.view(np.uint64).reshape(shape)
    return RowGroups(samples, memory, chunks.values.reshape(*shape, _CHUNK), sums)


def _fields(file: IndexFile, schema: FileSchema) -> dict[str, Field]:
    try:
        fields = fields_from_json(Checked(orjson.loads(file.fact("fields")), "the index", "fields"))
    except (orjson.JSONDecodeError, ManifestError) as err:
        raise file.error(f"does not list its fields ({one_line(err)})") from err
    if list(fields) != list(data_columns(schema)):
        raise file.error("lists other fields than its schema")
    return fields


def _classes(file: IndexFile) -> dict[str, tuple[str, ...]]:
    try:
        listed = Checked(orjson.loads(file.fact("classes")), "the index", "classes")
        return {name: tuple(item.text() for item in names.elements()) for name, names in listed.items()}
    except (orjson.JSONDecodeError, ManifestError) as err:
        raise file.error(f"does not list its classes ({one_line(err)})") from err
