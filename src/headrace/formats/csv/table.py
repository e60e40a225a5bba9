"""CSV and TSV tables: each record a sample, each column a field. Only read.

The first record names the columns; a column without a name is called by its number. The delimiter is a comma, a
semicolon, a tab or a bar, whichever gives the first two records the most columns, or where one of these is broken most
of the first records as many as the header. A column of whole numbers gives int,
one of numbers float, each with None for an empty cell; any other gives str, and so does one of numbers of which floats
would round the whole ones. That is decided over the whole file, and
over all files of a dataset. A column `__key__`, if there is one, holds the keys. A record with more or fewer cells than
there are columns is a damaged sample. Packed files (`.gz`, `.bz2`, `.xz`, `.zst`) are read as a whole, so they are
for small data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import xxhash

from headrace.errors import DamagedError, DatasetError
from headrace.formats.checking import Checked
from headrace.formats.columns import I64
from headrace.formats.csv.cells import DELIMITERS, CellError, kind_of, record_ends, split_record, wider
from headrace.formats.fields import Field
from headrace.formats.format import Found, Listing, ScanOptions
from headrace.formats.records.frames import Frames
from headrace.formats.records.index import RecordsIndex, Rows, RowsBuilder
from headrace.formats.records.lines import TABLES, blocks, check_length, line_ends, shown, text_files
from headrace.formats.records.stream import ShardStream
from headrace.formats.shards import Shard
from headrace.storage import File

_KEY = "__key__"
_LOOKED_AT = 16
"""Records that may show the delimiter."""
_FIELDS = {
    "int": Field("int", "int64"),
    "wide": Field("int", "int64", wide=True),
    "float": Field("float", "float64"),
    "str": Field("str"),
    "null": Field("null", nullable=True),
}
_READERS: dict[str, Callable[[str], Any]] = {
    "int": lambda cell: int(cell) if cell else None,
    "wide": lambda cell: int(cell) if cell else None,
    "float": lambda cell: float(cell) if cell else None,
    "null": lambda cell: cell or None,
}


class CsvIndex(RecordsIndex):
    """The index of a table."""

    format: ClassVar[str] = "csv"

    def _prepare(self) -> None:
        self._delimiter: str = self._facts["delimiter"]
        columns = enumerate(self._facts["columns"])
        self._columns = [(at, name, self._reader(name)) for at, name in columns if name != _KEY]

    def _reader(self, name: str) -> Callable[[str], Any]:
        """What makes a value of a cell: as the dataset has the column, unless this file's cells do not allow it."""
        return _READERS.get(wider(_kind(self._own_fields[name]), _kind(self._reads_as[name])), str)

    def _decoded(self, i: int, record: memoryview) -> dict[str, Any]:
        cells = split_record(str(record, "utf-8"), self._delimiter)
        return {name: read(cells[at]) for at, name, read in self._columns}

    @classmethod
    def _made(
        cls, shard_bytes: int, rows: Rows, fields: Mapping[str, Field], reading: Checked, frames: Frames | None
    ) -> Self:
        if reading["delimiter"].value not in DELIMITERS:
            raise reading["delimiter"].error("must be a delimiter")
        names = [name.text() for name in reading["columns"].elements()]
        if set(names) - {_KEY} != set(fields):
            raise reading["columns"].error("must be the index's fields")
        return super()._made(shard_bytes, rows, fields, reading, frames)


def join_fields(one: Field, other: Field) -> Field:
    """What holds for a column that is the one in some files and the other in others."""
    kind = wider(_kind(one), _kind(other))
    return _field(kind, has_empty=one.nullable or other.nullable)


def find_csv(listing: Listing, options: ScanOptions) -> Found | None:
    """The files of a folder named `.csv` or `.tsv`."""
    files = text_files(listing, TABLES)
    return Found(files) if files else None


def scan_csv(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[CsvIndex, Shard]:
    """The index of a table, made in one pass over it, and its row.

    Raises DamagedError for packed files that are cut off, records too long, a quoted cell that never ends, and files of
    which many records are broken; DatasetError for a header that names two columns alike.
    """
    with ShardStream(file, options) as stream:
        scan = _Scan(stream, hints["file"], options.max_sample_bytes)
        scan.run()
        facts = {"delimiter": scan.delimiter, "columns": scan.columns}
        frames = stream.frames(len(scan.rows))
        index = CsvIndex(stream.stored_bytes, scan.rows.rows(), scan.fields(), facts, frames)
        return index, index.row(stream.digest())


class _Scan:
    """One pass over a table: lines to records, and what the columns' cells are."""

    def __init__(self, stream: ShardStream, file: str, max_sample_bytes: int) -> None:
        self.rows = RowsBuilder(file, stream.name)
        self.columns: list[str] = []
        self.delimiter = ""
        self._stream, self._max = stream, max_sample_bytes
        self._kinds: list[str] = []
        self._has_empty: list[bool] = []
        self._key_at: int | None = None

    def run(self) -> None:
        """Scan the file to its end."""
        base, rest = 0, b""
        for start, block in blocks(self._stream, self._max):
            base, rest = (base, rest + block) if rest else (start, block)
            if not self.delimiter:
                self.delimiter = _delimiter(rest)
            ends, is_open = record_ends(rest, line_ends(rest), self.delimiter)
            end = self._take_block(base, rest, ends)
            base, rest = base + end, rest[end:] if is_open else b""
            check_length(self._stream.name, base, len(rest), self._max)
        if rest:
            raise DamagedError(
                f"{self._stream.name} is cut short, or has a quote too many: record {len(self.rows):,}, at byte "
                f"{base:,}, begins a quoted cell that never ends"
            )
        if not self.columns:
            raise DatasetError(
                f"{self._stream.name} is empty, without the header that names a table's columns: restore or remove it"
            )

    def fields(self) -> dict[str, Field]:
        """What the columns are."""
        kinds = zip(self.columns, self._kinds, self._has_empty, strict=True)
        return {name: _field(kind, has_empty) for name, kind, has_empty in kinds if name != _KEY}

    def _take_block(self, base: int, block: bytes, ends: I64) -> int:
        """Note the block's records; returns where the last one ends."""
        start = 0
        table: list[list[str]] = []
        for end in ends.tolist():
            record = block[start:end]
            if record.strip(b"\r\n"):
                if self.columns:
                    self._take(base + start, record, table)
                else:
                    self._begin(record)
            start = end
        self._note_kinds(table)
        return start

    def _begin(self, record: bytes) -> None:
        try:
            names = split_record(record.decode(), self.delimiter)
        except ValueError as err:  # CellError is one, and what is not UTF-8
            raise DatasetError(
                f"{self._stream.name}: its first record, the header of the table, is broken ({err}): correct it, or "
                "save the file as UTF-8"
            ) from err
        self.columns = [name or str(at) for at, name in enumerate(names)]
        twice = next((name for at, name in enumerate(self.columns) if name in self.columns[:at]), None)
        if twice is not None:
            raise DatasetError(f"{self._stream.name}: two columns are named {shown(twice)}; rename one of them")
        self._kinds, self._has_empty = ["null"] * len(names), [False] * len(names)
        self._key_at = self.columns.index(_KEY) if _KEY in self.columns else None

    def _take(self, offset: int, record: bytes, table: list[list[str]]) -> None:
        check_length(self._stream.name, offset, len(record), self._max)
        key = None
        try:
            cells = split_record(record.decode(), self.delimiter)
            if len(cells) != len(self.columns):
                raise CellError(f"it has {len(cells)} cells, the table {len(self.columns)} columns")
            table.append(cells)
            key = cells[self._key_at] or None if self._key_at is not None else None
        except ValueError as err:
            self.rows.mark(len(self.rows), f"record {len(self.rows):,}, at byte {offset:,}: {err}")
        self.rows.add(offset, len(record), 0 if self._stream.codec else xxhash.xxh3_64_intdigest(record), key)

    def _note_kinds(self, table: list[list[str]]) -> None:
        for at, cells in enumerate(zip(*table, strict=True)):
            if self._kinds[at] != "str":
                self._has_empty[at] = self._has_empty[at] or "" in cells
                self._kinds[at] = wider(self._kinds[at], kind_of(list(cells)))


def _field(kind: str, has_empty: bool) -> Field:
    known = _FIELDS[kind]
    return replace(known, nullable=kind == "null" or (has_empty and kind != "str"))


def _kind(field: Field) -> str:
    """The kind of cells that a field is made of."""
    if field.wide:
        return "wide"
    return field.type if field.type in _FIELDS else "str"


def _delimiter(head: bytes) -> str:
    """The delimiter that gives the first two records the most cells, as many in both.

    Where none does, as one of them is broken, that by which most of the first records have as many as the header.
    """
    counts = {delimiter: _cell_counts(head, delimiter) for delimiter in DELIMITERS}
    several = {delimiter: found for delimiter, found in counts.items() if found and found[0] > 1}
    fits = [delimiter for delimiter, found in several.items() if found[0] == found[:2][-1]]
    if not fits:
        fits = [delimiter for delimiter, found in several.items() if 2 * found.count(found[0]) > len(found)]
    return max(fits, key=lambda delimiter: several[delimiter][0], default=DELIMITERS[0])


def _cell_counts(head: bytes, delimiter: str) -> list[int]:
    """How many cells the first records have; 0 for a broken one."""
    ends, start, counts = record_ends(head, line_ends(head), delimiter)[0].tolist(), 0, list[int]()
    for end in ends:
        record, start = head[start:end], end
        if record.strip(b"\r\n"):
            try:
                counts.append(len(split_record(record.decode(), delimiter)))
            except ValueError:
                counts.append(0)
        if len(counts) == _LOOKED_AT:
            break
    return counts
