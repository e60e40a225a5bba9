"""Batches that are taken out of tables: samples that nothing is done to, gathered by indexing, not one by one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError
from headrace.formats import Table, objects
from headrace.load.batch import WORD, pickled
from headrace.load.fields import Specs
from headrace.load.job import Array, Blobs, Collate, Content, Delivery, Job, OnError, unexpected
from headrace.load.slots import Slot
from headrace.telemetry import Meter
from headrace.transform import ArraySpec, Cast, Decode, Op, may_cast

I64 = NDArray[np.int64]

_LARGE_BYTES = 4096
"""From here on values are copied one by one; smaller ones are joined first, which copies twice but is one call."""
_PADS = [bytes(WORD - rest) if rest else b"" for rest in range(WORD)]


def takes_tables(job: Job, specs: Specs | None) -> bool:
    """Whether a job's samples may go into batches column by column, where there are tables of them."""
    if specs is None or job.collate is not None or job.processes > 1 or job.suspects or job.condemned:
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
        self._packed = np.dtype([(name, spec.dtype, spec.shape) for name, spec in self.arrays.items()])

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
        rows = np.empty(len(arrays[0]), self._packed)
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


@dataclass(slots=True)
class TabledBatch:
    """A batch that is made at once, of parts of runs."""

    slot: Slot
    num_rows: int
    columns: Columns
    epoch: int
    position: int
    """Of its first row."""
    keys: list[str] = field(default_factory=list)
    fields: dict[str, Content] = field(default_factory=dict)
    plain: dict[str, list[Any]] = field(default_factory=dict)
    error: HeadraceError | None = None

    def fill(self, parts: Sequence[Part]) -> None:
        """Take the rows. What goes wrong is told when the batch is delivered."""
        try:
            self._fill(parts)
        except BaseException as err:  # whatever it was, the batch must not be waited for for ever
            self.error = err if isinstance(err, HeadraceError) else unexpected(err)

    def _fill(self, parts: Sequence[Part]) -> None:
        indices = [part.samples - part.columns.first for part in parts]
        keys = np.empty(self.num_rows, np.object_)
        for part, at in zip(parts, indices, strict=True):
            keys[part.rows] = part.columns.keys[at]
        self.keys = keys.tolist()
        self._fill_arrays(parts, indices)
        for number, name in enumerate(self.columns.lists):
            lists = [part.columns.lists[number] for part in parts]
            if len({values.dtype for values in lists}) == 1 and lists[0].dtype.kind == "V":
                self._add_rows(name, parts, lists, indices)
                continue
            for part, values, at in zip(parts, lists, indices, strict=True):
                keys[part.rows] = values[at] if values.dtype == np.object_ else _views(values[at])
            self._add_list(name, keys.tolist())

    def _add_rows(
        self, name: str, parts: Sequence[Part], lists: Sequence[NDArray[Any]], indices: Sequence[I64]
    ) -> None:
        """Add byte strings that are all of one length."""
        dtype, width = lists[0].dtype, -(-lists[0].itemsize // WORD) * WORD
        offset, view = self.slot.allocate(self.num_rows * width)
        target = np.ndarray((self.num_rows,), dtype, view.data, 0, (width,))
        for part, values, at in zip(parts, lists, indices, strict=True):
            target[part.rows] = values[at]
        starts = offset + width * np.arange(self.num_rows)
        self.fields[name] = Blobs(starts, np.full(self.num_rows, dtype.itemsize, np.int64))

    def _fill_arrays(self, parts: Sequence[Part], indices: Sequence[I64]) -> None:
        arrays = {name: self._place(name, spec) for name, spec in self.columns.arrays.items()}
        if not arrays:
            return
        gathered = next(iter(arrays.values())) if len(arrays) == 1 else None
        for part, at in zip(parts, indices, strict=True):
            rows = part.columns.rows
            assert rows is not None  # there are arrays
            if gathered is None:
                gathered = np.empty(self.num_rows, rows.dtype)
            gathered[part.rows] = rows[at]
        if len(arrays) > 1:
            assert gathered is not None  # a batch has rows
            for name, array in arrays.items():
                array[...] = gathered[name]

    def _place(self, name: str, spec: ArraySpec) -> NDArray[Any]:
        shape, dtype = (self.num_rows, *spec.shape), np.dtype(spec.dtype)
        offset, view = self.slot.allocate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self.fields[name] = Array(dtype.name, shape, offset)
        return view.view(dtype).reshape(shape)

    def _add_list(self, name: str, values: list[Any]) -> None:
        if not isinstance(values[0], memoryview):
            self.plain[name] = values
            self.fields[name] = [None] * self.num_rows
            return
        lengths = np.fromiter(map(len, values), np.int64, self.num_rows)
        padded = -(-lengths // WORD) * WORD
        ends = np.cumsum(padded)
        offset, view = self.slot.allocate(int(ends[-1]))
        starts = ends - padded
        if int(ends[-1]) >= _LARGE_BYTES * self.num_rows:
            target = view.data
            for value, start, length in zip(values, starts.tolist(), lengths.tolist(), strict=True):
                target[start : start + length] = value
        else:
            if not np.array_equal(padded, lengths):
                values = [part for value in values for part in (value, _PADS[len(value) % WORD])]
            view[:] = np.frombuffer(b"".join(values), np.uint8)
        self.fields[name] = Blobs(offset + starts, lengths)

    def deliver(self, delivery: Delivery, collate: Collate | None, on_error: OnError, meter: Meter) -> None:
        """Fill in the finished batch; there is nothing to collate or to skip. `meter` counts the work."""
        began = time.perf_counter()
        delivery.error = self.error
        if self.error is None:
            delivery.keys, delivery.fields, delivery.plain = self.keys, self.fields, pickled(self.plain)
        delivery.slot_bytes, delivery.used_bytes = self.slot.size, self.slot.used
        meter.add(items=self.num_rows, num_bytes=self.slot.used, busy_sec=time.perf_counter() - began)


def _views(values: NDArray[np.void]) -> NDArray[np.object_]:
    """Byte strings of one length as any others are."""
    data = memoryview(values.tobytes())
    length = values.itemsize
    return objects((data[at : at + length] for at in range(0, len(data), length)), len(values))
