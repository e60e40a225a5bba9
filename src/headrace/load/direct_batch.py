"""A batch of byte strings that were read to their places: what is told of it are columns, not values row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.load.batch import Batch
from headrace.load.fields import Specs
from headrace.load.job import Blob, Blobs, Collate, Delivery, OnError
from headrace.load.rows import Made
from headrace.load.slots import Slot
from headrace.telemetry import Meter

I64 = NDArray[np.int64]
Spans: TypeAlias = Mapping[str, tuple[I64, I64]]
"""Field -> where the bytes of each row begin in the slot, and how many they are."""


class DirectBatch(Batch):
    """Rows come as columns by `add_read`; those that could not be had so, by `add` as in any batch."""

    def __init__(self, slot: Slot, num_rows: int, real: NDArray[np.bool_] | None, specs: Specs | None) -> None:
        """No field of `specs`, which are known, has an array."""
        super().__init__(slot, num_rows, real, specs)
        self._keys = np.empty(num_rows, np.object_)
        self._spans = {name: (np.zeros(num_rows, np.int64), np.zeros(num_rows, np.int64)) for name in specs or ()}
        self._read = np.zeros(num_rows, np.bool_)

    def add_read(self, rows: I64, keys: Sequence[str], spans: Spans) -> bool:
        """Take rows that lie in the slot. True after the batch's last."""
        self._keys[rows] = keys
        for name, (starts, lengths) in spans.items():
            self._spans[name][0][rows] = starts
            self._spans[name][1][rows] = lengths
        self._read[rows] = True
        return self._count(len(rows))

    def deliver(self, delivery: Delivery, collate: Collate | None, on_error: OnError, meter: Meter) -> None:
        """As any batch; where every row was read as planned, without a look at each."""
        if not self._read.all():
            self._tell_rows()
            super().deliver(delivery, collate, on_error, meter)
            return
        with self._counted(delivery, meter):
            delivery.keys, delivery.real = self._keys.tolist(), self._real
            delivery.fields = {name: Blobs(*spans) for name, spans in self._spans.items()}

    def _tell_rows(self) -> None:
        for row in np.flatnonzero(self._read).tolist():
            self._made[row] = Made(self._keys[row], {})
            self._stored[row] = {
                name: Blob(int(starts[row]), int(lengths[row])) for name, (starts, lengths) in self._spans.items()
            }
