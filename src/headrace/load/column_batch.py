"""A batch whose rows come as columns: what was read to its place, or gathered out of tables, is not told row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.load.batch import Batch, pickled
from headrace.load.fields import Specs
from headrace.load.job import Blob, Blobs, Collate, Content, Delivery, OnError
from headrace.load.keys import Keys, joined, strings
from headrace.load.rows import Made
from headrace.load.slots import Slot
from headrace.telemetry import Meter

I64 = NDArray[np.int64]
Spans: TypeAlias = Mapping[str, tuple[I64, I64]]
"""Field -> where the bytes of each row begin in the slot, and how many they are."""


class ColumnRows(NamedTuple):
    """Rows of a batch whose tensor fields are in its arrays already."""

    keys: Keys
    spans: Spans
    """Fields that are lists of byte strings in the slot."""
    plain: Mapping[str, Sequence[Any]]
    """Fields that are lists of anything else."""


class ColumnBatch(Batch):
    """Rows come as columns by `add_columns`; those that could not be had so, by `add` as in any batch."""

    def __init__(self, slot: Slot, num_rows: int, real: NDArray[np.bool_] | None, specs: Specs | None) -> None:
        """`specs` are known."""
        super().__init__(slot, num_rows, real, specs)
        self._lists = [name for name, spec in (specs or {}).items() if spec is None]
        self._keys: list[tuple[I64 | slice, Keys]] = []
        self._here = np.zeros(num_rows, np.bool_)
        self._spans = {name: (np.zeros(num_rows, np.int64), np.full(num_rows, -1)) for name in self._lists}
        """Of a row without a span the length is -1."""
        self._plain: dict[str, NDArray[np.object_]] = {}

    def add_columns(self, rows: I64 | slice, columns: ColumnRows) -> bool:
        """Take rows. True after the batch's last."""
        self._keys.append((rows, columns.keys))
        for name, (starts, lengths) in columns.spans.items():
            self._spans[name][0][rows] = starts
            self._spans[name][1][rows] = lengths
        for name, values in columns.plain.items():
            held = self._plain.setdefault(name, np.empty(self.num_rows, np.object_))
            for row, value in zip(np.arange(self.num_rows)[rows].tolist(), values, strict=True):
                held[row] = value  # one by one: numpy would take lists apart
        self._here[rows] = True
        return self._count(len(columns.keys))

    def add_read(self, rows: I64, columns: ColumnRows, others: Mapping[int, Made]) -> bool:
        """Take rows as columns, and others by themselves. True after the batch's last."""
        is_last = bool(others) and self.add(list(others), list(others.values()), keep_samples=False)
        return self.add_columns(rows, columns) if len(rows) else is_last

    def deliver(self, delivery: Delivery, collate: Collate | None, on_error: OnError, meter: Meter) -> None:
        """As any batch; where every row came as planned, without a look at each."""
        contents = {name: self._list(name) for name in self._lists} if self._here.all() else None
        if contents is None or None in contents.values():
            self._tell_rows()
            super().deliver(delivery, collate, on_error, meter)
            return
        with self._counted(delivery, meter):
            delivery.keys, delivery.real = joined(self._keys, self.num_rows), self._real
            delivery.fields = {**self.places, **{name: one for name, one in contents.items() if one is not None}}
            delivery.plain = pickled({name: values.tolist() for name, values in self._plain.items()})

    def _list(self, name: str) -> Content | None:
        """Where a list field's values are; None if some are byte strings and others not."""
        starts, lengths = self._spans[name]
        is_blob = lengths >= 0
        if is_blob.all():
            return Blobs(starts, lengths)
        return None if is_blob.any() else [None] * self.num_rows

    def _tell_rows(self) -> None:
        keys = dict(self._numbered_keys())
        for row in np.flatnonzero(self._here).tolist():
            blobs = {name: (int(starts[row]), int(lengths[row])) for name, (starts, lengths) in self._spans.items()}
            self._stored[row] = {name: Blob(*span) for name, span in blobs.items() if span[1] >= 0}
            plain = {name: self._plain[name][row] for name, span in blobs.items() if span[1] < 0}
            self._made[row] = Made(keys[row], plain)

    def _numbered_keys(self) -> Iterator[tuple[int, str]]:
        for rows, keys in self._keys:
            yield from zip(np.arange(self.num_rows)[rows].tolist(), strings(keys), strict=True)
