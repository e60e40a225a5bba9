"""Batches that are taken out of tables: samples that nothing is done to, gathered by indexing, not one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.formats import Table, objects
from headrace.load.batch import WORD
from headrace.load.column_batch import ColumnRows
from headrace.load.fields import Specs
from headrace.load.job import Job
from headrace.load.slots import Slot
from headrace.transform import Cast, Decode, Op, may_cast

I64 = NDArray[np.int64]

_LARGE_BYTES = 4096
"""From here on values are copied one by one; smaller ones are joined first, which copies twice but is one call."""
_PADS = [bytes(WORD - rest) if rest else b"" for rest in range(WORD)]


def takes_tables(job: Job, specs: Specs | None) -> bool:
    """Whether a job's samples may go into batches column by column, where there are tables of them."""
    if specs is None or job.collate is not None or job.suspects or job.condemned:
        return False
    stored = [name for name, field in job.dataset.schema.items() if field.type in ("bytes", "image")]
    return all(_takes_columns(op, specs, stored) for op in job.ops)


def _takes_columns(op: Op, specs: Specs, stored: Sequence[str]) -> bool:
    """Whether a step works on columns as it does on samples; `stored` are the fields that hold bytes before any."""
    if isinstance(op, Cast):
        return all(name in specs and name not in stored for name, _ in op.dtypes)
    return isinstance(op, Decode) and all(map(op.takes_columns, stored))


class Columns:
    """What a batch needs of each field, and how it comes out of a table."""

    def __init__(self, specs: Specs, ops: Sequence[Op]) -> None:
        """`ops` are steps that work on columns too."""
        self.specs = specs
        self.arrays = {name: spec for name, spec in specs.items() if spec is not None}
        self.lists = [name for name, spec in specs.items() if spec is None]
        self._steps = [op for op in ops if isinstance(op, Cast | Decode)]
        self._is_cast = {name for op in ops if isinstance(op, Cast) for name, _ in op.dtypes}
        self.packed = np.dtype([(name, spec.dtype, spec.shape) for name, spec in self.arrays.items()])

    def of(self, table: Table | None) -> RunColumns | None:
        """A table's columns in the form in which batches take them; None if samples are to be taken one by one."""
        if table is None or table.columns.keys() != self.specs.keys():
            return None
        columns: dict[str, NDArray[Any]] = {}
        for name, stored in table.columns.items():
            column = self._stepped(name, stored)
            if column is None or not self._fits(name, column):
                return None
            columns[name] = column
        return RunColumns(table.first, table.keys, self._rows(columns), [columns[name] for name in self.lists])

    def _stepped(self, name: str, column: NDArray[Any] | None) -> NDArray[Any] | None:
        """The column after all steps."""
        for step in self._steps:
            if column is None:
                break
            if column.dtype.kind == "V" and not step.leaves(name):
                column = _views(column)
            try:
                column = step.column(name, column)
            except (ValueError, OverflowError):  # one by one it is told of which sample
                return None
        return column

    def _fits(self, name: str, column: NDArray[Any]) -> bool:
        spec = self.specs[name]
        if spec is None:
            return column.dtype.kind in "OV"
        dtype = np.dtype(spec.dtype)
        casts = may_cast(column.dtype, dtype) if name in self._is_cast else np.can_cast(column.dtype, dtype, "safe")
        return column.shape[1:] == spec.shape and bool(casts)

    def _rows(self, columns: dict[str, NDArray[Any]]) -> NDArray[Any] | None:
        """All tensor fields side by side: taking a sample is one copy, however many they are."""
        arrays = [columns[name] for name in self.arrays]
        if len(arrays) < 2:
            return arrays[0] if arrays else None
        rows = np.empty(len(arrays[0]), self.packed)
        for name, column in zip(self.arrays, arrays, strict=True):
            rows[name] = column
        return rows


class RunColumns(NamedTuple):
    """A run's samples, ready to be taken by number."""

    first: int
    keys: NDArray[np.object_]
    rows: NDArray[Any] | None
    lists: list[NDArray[Any]]


class Part(NamedTuple):
    """Some rows of a batch, out of one run."""

    columns: RunColumns
    rows: I64
    samples: I64
    """Their numbers in the piece."""


def gather(
    columns: Columns, parts: Sequence[Part], slot: Slot, arrays: Mapping[str, NDArray[Any]], rows: I64 | slice
) -> ColumnRows:
    """Take parts of runs into a batch, to these rows of it: row i of the parts is the i-th of them."""
    num_rows = sum(len(part.rows) for part in parts)
    indices = [part.samples - part.columns.first for part in parts]
    taken = np.empty(num_rows, np.object_)
    for part, at in zip(parts, indices, strict=True):
        taken[part.rows] = part.columns.keys[at]
    keys = taken.tolist()
    _fill_arrays(columns, parts, indices, arrays, rows)
    spans: dict[str, tuple[I64, I64]] = {}
    plain: dict[str, list[Any]] = {}
    for number, name in enumerate(columns.lists):
        lists = [part.columns.lists[number] for part in parts]
        if len({values.dtype for values in lists}) == 1 and lists[0].dtype.kind == "V":
            spans[name] = _even(parts, lists, indices, slot, num_rows)
            continue
        for part, values, at in zip(parts, lists, indices, strict=True):
            taken[part.rows] = values[at] if values.dtype == np.object_ else _views(values[at])
        found = taken.tolist()
        if isinstance(found[0], memoryview):
            spans[name] = _uneven(found, slot)
        else:
            plain[name] = found
    return ColumnRows(keys, spans, plain)


def _fill_arrays(
    columns: Columns,
    parts: Sequence[Part],
    indices: Sequence[I64],
    arrays: Mapping[str, NDArray[Any]],
    rows: I64 | slice,
) -> None:
    if not arrays or not parts:
        return
    lone = next(iter(arrays.values())) if len(arrays) == 1 else None
    num_rows = sum(map(len, indices))
    gathered = np.empty(num_rows, columns.packed) if lone is None else lone
    places = np.arange(len(lone))[rows] if lone is not None else None
    for part, at in zip(parts, indices, strict=True):
        stored = part.columns.rows
        assert stored is not None  # there are arrays
        gathered[part.rows if places is None else places[part.rows]] = stored[at]
    if lone is None:
        for name, array in arrays.items():
            array[rows] = gathered[name]


def _even(
    parts: Sequence[Part], lists: Sequence[NDArray[Any]], indices: Sequence[I64], slot: Slot, num_rows: int
) -> tuple[I64, I64]:
    """Byte strings that are all of one length."""
    dtype, width = lists[0].dtype, -(-lists[0].itemsize // WORD) * WORD
    offset, view = slot.allocate(num_rows * width)
    target = np.ndarray((num_rows,), dtype, view.data, 0, (width,))
    for part, values, at in zip(parts, lists, indices, strict=True):
        target[part.rows] = values[at]
    return offset + width * np.arange(num_rows), np.full(num_rows, dtype.itemsize, np.int64)


def _uneven(values: list[Any], slot: Slot) -> tuple[I64, I64]:
    """Byte strings of several lengths."""
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    padded = -(-lengths // WORD) * WORD
    ends = np.cumsum(padded)
    offset, view = slot.allocate(int(ends[-1]))
    starts = ends - padded
    if int(ends[-1]) >= _LARGE_BYTES * len(values):
        target = view.data
        for value, start, length in zip(values, starts.tolist(), lengths.tolist(), strict=True):
            target[start : start + length] = value
    else:
        if not np.array_equal(padded, lengths):
            values = [part for value in values for part in (value, _PADS[len(value) % WORD])]
        view[:] = np.frombuffer(b"".join(values), np.uint8)
    return offset + starts, lengths


def _views(values: NDArray[np.void]) -> NDArray[np.object_]:
    """Byte strings of one length as any others are."""
    data = memoryview(values.tobytes())
    length = values.itemsize
    return objects((data[at : at + length] for at in range(0, len(data), length)), len(values))
