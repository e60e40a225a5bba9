"""Batches that are taken out of tables: samples that nothing is done to, gathered by indexing, not one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.formats import Table, objects
from headrace.load.batch import WORD
from headrace.load.column_batch import ColumnRows
from headrace.load.fields import Specs
from headrace.load.job import Job
from headrace.load.keys import Keys, joined
from headrace.load.rows_at import RowsAt, copy_rows
from headrace.load.slots import Slot
from headrace.transform import Cast, Decode, Op, may_cast

I64 = NDArray[np.int64]
Values: TypeAlias = "list[Any] | RowsAt"
"""A list field's values: byte strings of one length, or anything."""

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
        return RunColumns(
            table.first, _values(table.keys), self._rows(columns), [_values(columns[name]) for name in self.lists]
        )

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

    def _rows(self, columns: dict[str, NDArray[Any]]) -> RowsAt | None:
        """All tensor fields side by side: taking a sample is one copy, however many they are."""
        arrays = [columns[name] for name in self.arrays]
        if len(arrays) < 2:
            return RowsAt(arrays[0]) if arrays else None
        rows = np.empty(len(arrays[0]), self.packed)
        for name, column in zip(self.arrays, arrays, strict=True):
            rows[name] = column
        return RowsAt(rows)


class RunColumns(NamedTuple):
    """A run's samples, ready to be taken by number."""

    first: int
    keys: list[str] | RowsAt
    rows: RowsAt | None
    lists: list[Values]


class Picked(NamedTuple):
    """Rows of a batch that come out of runs: row i is number at[i] of runs[which[i]]."""

    runs: Sequence[RunColumns]
    which: I64
    at: I64

    @classmethod
    def of(cls, runs: Sequence[RunColumns], which: I64, samples: I64) -> Picked:
        """Where samples are of these numbers in their pieces."""
        firsts = np.fromiter((run.first for run in runs), np.int64, len(runs))
        return cls(runs, which, samples - firsts[which])

    def values(self, columns: Sequence[Sequence[Any] | RowsAt]) -> list[Any]:
        """Each row's value, out of a column of each run."""
        return [columns[run][at] for run, at in zip(self.which.tolist(), self.at.tolist(), strict=True)]


def gather(
    columns: Columns, picked: Picked, slot: Slot, arrays: Mapping[str, NDArray[Any]], rows: I64 | slice
) -> ColumnRows:
    """Take rows out of runs into a batch, to these rows of it."""
    _fill_arrays(columns, picked, arrays, rows)
    keys = _keys(picked)
    spans: dict[str, tuple[I64, I64]] = {}
    plain: dict[str, list[Any]] = {}
    for number, name in enumerate(columns.lists):
        lists = [run.lists[number] for run in picked.runs]
        even = _of_one_length(lists)
        if even is not None:
            spans[name] = _even(even, picked, slot)
            continue
        found = picked.values(lists)
        if isinstance(found[0], memoryview):
            spans[name] = _uneven(found, slot)
        else:
            plain[name] = found
    return ColumnRows(keys, spans, plain)


def _keys(picked: Picked) -> Keys:
    found: list[tuple[I64, Keys]] = []
    for columns, rows, part in _alike([run.keys for run in picked.runs], picked):
        even = _of_one_length(columns)
        if even is None:
            found.append((rows, part.values(columns)))
            continue
        characters = np.empty(len(rows), even[0].dtype)
        copy_rows(even, part.which, part.at, characters, slice(None))
        found.append((rows, characters))
    return found[0][1] if len(found) == 1 else joined(found, len(picked.which))


def _alike(columns: Sequence[Values], picked: Picked) -> Iterator[tuple[list[Values], I64, Picked]]:
    """The runs' columns by dtype, those that are lists together: the columns, the rows out of them, where these lie."""
    kinds = [one.dtype if isinstance(one, RowsAt) else None for one in columns]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    if len(numbers) == 1:
        yield list(columns), np.arange(len(picked.which)), picked
        return
    of_run = np.array([numbers[kind] for kind in kinds])
    for number in numbers.values():
        alike = np.flatnonzero(of_run == number)
        rows = np.flatnonzero(of_run[picked.which] == number)
        runs = [picked.runs[run] for run in alike.tolist()]
        which = np.searchsorted(alike, picked.which[rows])
        yield [columns[run] for run in alike.tolist()], rows, Picked(runs, which, picked.at[rows])


def _of_one_length(columns: Sequence[Values]) -> list[RowsAt] | None:
    """The columns, if their values are byte strings all of one length."""
    even = [one for one in columns if isinstance(one, RowsAt)]
    return even if len(even) == len(columns) and len({one.width for one in even}) == 1 else None


def _fill_arrays(columns: Columns, picked: Picked, arrays: Mapping[str, NDArray[Any]], rows: I64 | slice) -> None:
    stored = [run.rows for run in picked.runs if run.rows is not None]
    if not arrays or not stored:
        return
    if len(arrays) == 1:
        _fill(next(iter(arrays.values())), stored, picked, rows)
        return
    gathered = np.empty(len(picked.which), columns.packed)
    _fill(gathered, stored, picked, slice(None))
    for name, array in arrays.items():
        array[rows] = gathered[name]


def _fill(target: NDArray[Any], stored: Sequence[RowsAt], picked: Picked, rows: I64 | slice) -> None:
    """Runs may differ in dtype, as of token shards that do."""
    for columns, some, part in _alike(stored, picked):
        alike = [one for one in columns if isinstance(one, RowsAt)]
        is_all = len(some) == len(picked.which)
        copy_rows(alike, part.which, part.at, target, rows if is_all else np.arange(len(target))[rows][some])


def _even(lists: Sequence[RowsAt], picked: Picked, slot: Slot) -> tuple[I64, I64]:
    """Byte strings that are all of one length."""
    num_rows, length = len(picked.which), lists[0].width
    width = -(-length // WORD) * WORD
    offset, view = slot.allocate(num_rows * width)
    target = np.ndarray((num_rows,), lists[0].dtype, view.data, 0, (width,))
    copy_rows(lists, picked.which, picked.at, target, slice(None))
    return offset + width * np.arange(num_rows), np.full(num_rows, length, np.int64)


def _values(column: list[Any] | NDArray[Any]) -> Values:
    """A column of anything but numbers."""
    if isinstance(column, list):
        return column
    return column.tolist() if column.dtype == np.object_ else RowsAt(column)


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
