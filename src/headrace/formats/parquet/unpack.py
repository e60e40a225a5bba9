"""A row group's bytes as Arrow columns: what it unpacks to is added up first, then pyarrow does the work.

pyarrow reads files, and a row group is a part of one: it gets the row group's bytes as a file, with a footer of its
own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import DamagedError, DatasetError
from headrace.formats.index import Range
from headrace.formats.parquet.footer import RowGroup, too_large
from headrace.formats.parquet.pages import look_through
from headrace.formats.parquet.schema import ARROW_ERRORS, Column, FileSchema, one_line

_STEP_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How the columns of a row group are unpacked."""

    num_bytes: int
    """Memory that they take at most, if all rows are unpacked at once."""
    step_rows: int
    """How many rows may be unpacked at a time without values that grow on the way taking too much."""
    dictionary_paths: Sequence[str]
    """Leaves whose dictionary stays one."""


class Stored:
    """The bytes of a row group, or of those of its chunks that are wanted."""

    def __init__(self, group: RowGroup, data: memoryview, ranges: Sequence[Range]) -> None:
        """`data` is what the shard holds at these ranges, which are in storage order, one behind the other."""
        self.group, self.data = group, data
        self._offsets = [part.offset for part in ranges]
        self._starts = [0, *accumulate(part.length for part in ranges)]

    def start(self, leaf: int) -> int:
        """Where one of its chunks begins in `data`, if it is there; else any number of at least 0."""
        offset = self.group.chunks[leaf].offset
        k = bisect_right(self._offsets, offset) - 1
        return self._starts[k] + offset - self._offsets[k] if k >= 0 else 0

    def chunk(self, leaf: int) -> memoryview:
        """The bytes of one of its chunks, which must be there."""
        start = self.start(leaf)
        return self.data[start : start + self.group.chunks[leaf].num_bytes]


def plan_unpacking(schema: FileSchema, columns: Sequence[Column], stored: Stored, *, check_crc: bool = False) -> Plan:
    """What unpacking columns of a row group takes. Raises DamagedError for pages that do not make up their chunk."""
    num_bytes, step_rows, paths = 0, stored.group.num_rows, []
    for number in (number for column in columns for number in column.leaves):
        leaf, num_values = schema.leaves[number], stored.group.chunks[number].num_values
        found = look_through(stored.chunk(number), leaf, num_values, check_crc=check_crc)
        num_bytes += found.num_bytes
        if found.widest_bytes and leaf.is_repeated:
            num_bytes += found.widest_bytes * num_values
        elif found.widest_bytes:
            step_rows = min(step_rows, max(1, _STEP_BYTES // found.widest_bytes))
        if found.has_dictionary and leaf.value_bytes is None:
            paths.append(leaf.path)
    return Plan(num_bytes, step_rows, paths)


def unpack(
    schema: FileSchema, columns: Sequence[Column], stored: Stored, plan: Plan, limit: int
) -> tuple[dict[str, pa.Array], set[str]]:
    """Columns of a row group by name, and which of them have text that is not UTF-8. Releases the interpreter lock.

    Raises DamagedError for what pyarrow makes no sense of, DatasetError for what it does not read, or what takes more
    than `limit` bytes.
    """
    k, num_rows = stored.group.number, stored.group.num_rows
    try:
        table = _read(schema, columns, stored, plan, limit)
        arrays = {column.name: _whole(table.column(column.name)) for column in columns}
        broken = {name for name, array in arrays.items() if not _is_utf8(array)}
    except NotImplementedError as err:
        raise DatasetError(f"row group {k} is not read: {one_line(err)}") from err
    except ARROW_ERRORS as err:
        raise DamagedError(f"row group {k} does not unpack: {one_line(err)}") from err
    if any(len(array) != num_rows for array in arrays.values()):
        raise DamagedError(f"row group {k} does not have the {num_rows:,} rows of its footer")
    return arrays, broken


def _read(schema: FileSchema, columns: Sequence[Column], stored: Stored, plan: Plan, limit: int) -> pa.Table:
    group = stored.group
    # Columns that are not asked for may not be there; pyarrow never looks.
    chunks = [chunk._replace(offset=stored.start(number)) for number, chunk in enumerate(group.chunks)]
    file = pq.ParquetFile(
        pa.BufferReader(pa.py_buffer(stored.data)),
        metadata=schema.footer(group.num_rows, chunks),
        read_dictionary=list(plan.dictionary_paths),
        pre_buffer=False,
    )
    paths = [schema.leaves[number].path for column in columns for number in column.leaves]
    if plan.step_rows >= group.num_rows:
        return file.read_row_group(0, columns=paths, use_threads=False)
    batches, num_bytes = [], plan.num_bytes
    for batch in file.iter_batches(plan.step_rows, row_groups=[0], columns=paths, use_threads=False):
        batches.append(batch)
        num_bytes += batch.nbytes
        if num_bytes > limit:
            raise too_large(group.number, num_bytes, limit)
    return pa.Table.from_batches(batches)


def _is_utf8(array: pa.Array) -> bool:
    """Whether all text in a column is. Raises ArrowInvalid for anything else that is wrong, an index beyond a
    dictionary, say: from here on values are taken out without a check."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as err:
        if "UTF8" not in str(err):
            raise
        return False
    return True


def _whole(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return array if isinstance(array, pa.Array) else pa.concat_arrays(array.chunks)
