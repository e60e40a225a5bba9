"""A batch in the making: rows come in from several threads, in any order, and end up side by side in one slot."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DatasetError, HeadraceError, OptionError, TransformError
from headrace.load.channel import dumps
from headrace.load.decoded import Came
from headrace.load.fields import Specs, as_plain
from headrace.load.healing import Restart
from headrace.load.job import Array, Blob, Blobs, Collate, Content, Delivery, OnError, Skipped
from headrace.load.process import ProcessLostError
from headrace.load.rows import Made, contiguous
from headrace.load.slots import Slot
from headrace.telemetry import Meter
from headrace.transform import Sample

Stored: TypeAlias = dict[str, Array | Blob]
"""Where fields of one row lie in the slot."""

WORD = 8  # arrays of any dtype begin at multiples of this
_OF_A_SAMPLE = (DatasetError, TransformError)
"""Errors that are a sample's own, and may be skipped; others say that the loader cannot go on."""


class Batch:
    """One batch of `num_rows` rows in `slot`; `add` may be called from several threads."""

    def __init__(self, slot: Slot, num_rows: int, real: NDArray[np.bool_] | None, specs: Specs | None) -> None:
        """`real` says which rows are no repeats; None where no rank has any in this step."""
        self.slot = slot
        self.num_rows = num_rows
        self._real = real
        self._specs = specs
        self._made: list[Made | None] = [None] * num_rows
        self._stored: dict[int, Stored] = {}
        self._left = num_rows
        self._lock = threading.Lock()
        self.lost: list[ProcessLostError] = []
        """Worker processes that ended over it, and were replaced."""
        self.places: dict[str, Array] = {}
        self.arrays: dict[str, NDArray[Any]] = {}
        for name, spec in (specs or {}).items():
            if spec is not None:
                self._place_array(name, np.dtype(spec.dtype), (num_rows, *spec.shape))

    def add(self, rows: Sequence[int], made: Sequence[Made], keep_samples: bool) -> bool:
        """Take what became of some rows; byte strings and arrays are moved into the slot. True after the last."""
        if not keep_samples:
            self._store(rows, made)
        for row, one in zip(rows, made, strict=True):
            self._made[row] = one
        return self._count(len(rows))

    @property
    def came(self) -> Iterator[Came]:
        """How the decoded samples of rows came about, where they may be kept."""
        return (one.came for one in self._made if one is not None and one.came is not None)

    def fail(self, rows: Sequence[int], error: HeadraceError) -> bool:
        """Count rows as lost to an error that is not a sample's."""
        return self.add(rows, [Made("", None, error)] * len(rows), keep_samples=True)

    def deliver(self, delivery: Delivery, collate: Collate | None, on_error: OnError, meter: Meter) -> None:
        """Fill in the finished batch, without the rows that were filtered or failed; `meter` counts the work."""
        with self._counted(delivery, meter):
            self._deliver(delivery, collate, on_error)

    def _deliver(self, delivery: Delivery, collate: Collate | None, on_error: OnError) -> None:
        made = [one for one in self._made if one is not None]
        kept = [row for row, one in enumerate(made) if one.values is not None]
        delivery.skipped = [
            Skipped(one.key, str(one.error))
            for row, one in enumerate(made)
            if isinstance(one.error, _OF_A_SAMPLE) and self._is_real(row)  # else it is counted where it belongs
        ]
        delivery.error = next((one.error for one in made if one.error and not self._may_skip(one, on_error)), None)
        if delivery.error is None:
            delivery.keys = [made[row].key for row in kept]
            plain = self._collated(kept, collate, delivery) if collate else self._collect(kept, delivery)
            delivery.plain = pickled(plain)
            delivery.real = self._real[kept] if self._real is not None else None

    @contextmanager
    def _counted(self, delivery: Delivery, meter: Meter) -> Iterator[None]:
        began = time.perf_counter()
        delivery.restarts = [Restart.of("worker", delivery.epoch, delivery.step, lost) for lost in self.lost]
        yield
        delivery.slot_bytes, delivery.used_bytes = self.slot.size, self.slot.used
        num_rows = len(delivery.keys)
        meter.add(items=num_rows, num_bytes=self.slot.used, busy_sec=time.perf_counter() - began)

    def _count(self, num_rows: int) -> bool:
        """So many rows more are there. True after the last."""
        with self._lock:
            self._left -= num_rows
            return self._left == 0

    def _is_real(self, row: int) -> bool:
        return self._real is None or bool(self._real[row])

    def _may_skip(self, made: Made, on_error: OnError) -> bool:
        return on_error == "skip" and isinstance(made.error, _OF_A_SAMPLE)

    def _place_array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        offset, view = self.slot.allocate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self.places[name] = Array(dtype.name, shape, offset)
        self.arrays[name] = view.view(dtype).reshape(shape)
        return self.arrays[name]

    def _store(self, rows: Sequence[int], made: Sequence[Made]) -> None:
        """Move the byte strings and arrays of list fields into the slot, one allocation for all of these rows."""
        found = [
            (row, name, value)
            for row, one in zip(rows, made, strict=True)
            for name, value in (one.values or {}).items()
            if isinstance(value, memoryview | bytes | bytearray | np.ndarray)
        ]
        if not found:
            return
        sources = [contiguous(value) for _, _, value in found]
        offset, view = self.slot.allocate(sum(-(-len(source) // WORD) * WORD for source in sources))
        at = 0
        for (row, name, value), source in zip(found, sources, strict=True):
            view[at : at + len(source)] = source
            self._stored.setdefault(row, {})[name] = (
                Array(value.dtype.name, value.shape, offset + at)
                if isinstance(value, np.ndarray)
                else Blob(offset + at, len(source))
            )
            at += -(-len(source) // WORD) * WORD

    def _collect(self, kept: list[int], delivery: Delivery) -> dict[str, Any]:
        """Say where each field of the kept rows lies; returns what is not in the slot."""
        for name, place in self.places.items():
            if len(kept) < self.num_rows:  # close the gaps
                self.arrays[name][: len(kept)] = self.arrays[name][kept]
            delivery.fields[name] = Array(place.dtype, (len(kept), *place.shape[1:]), place.offset)
        plain: dict[str, list[Any]] = {}
        for name in self._list_fields(kept):
            stored = [self._stored.get(row, {}).get(name) for row in kept]
            delivery.fields[name] = _listed(stored)
            if None in stored:
                values = [self._values(row).get(name) for row in kept]
                plain[name] = [v if s is None else None for v, s in zip(values, stored, strict=True)]
        return plain

    def _list_fields(self, kept: list[int]) -> list[str]:
        """Names of the fields that are lists: the same in every batch, also in an empty one."""
        if self._specs is not None:
            return [name for name, spec in self._specs.items() if spec is None]
        return list({name: None for row in kept for name in self._values(row)})

    def _values(self, row: int) -> dict[str, Any]:
        made = self._made[row]
        return made.values or {} if made else {}

    def _collated(self, kept: list[int], collate: Collate, delivery: Delivery) -> dict[str, Any]:
        """What the user's function makes of the samples: its arrays go into the slot, the rest is returned."""
        plain: dict[str, Any] = {}
        for name, value in _call(collate, [self._values(row) for row in kept]).items() if kept else ():
            if isinstance(value, np.ndarray):
                self._place_array(name, value.dtype, value.shape)[...] = value
                delivery.fields[name] = self.places[name]
            else:
                plain[name] = value
        return plain


def _listed(stored: list[Array | Blob | None]) -> Content:
    blobs = [one for one in stored if isinstance(one, Blob)]
    if len(blobs) < len(stored):
        return stored
    offsets = np.array([one.offset for one in blobs], np.int64)
    return Blobs(offsets, np.array([one.length for one in blobs], np.int64))


def pickled(plain: dict[str, Any]) -> bytes:
    """The fields that are not in the slot. Raises TransformError for what cannot be sent."""
    if not plain:
        return b""
    try:
        return dumps(plain)
    except Exception:
        for name, value in plain.items():  # which one was it?
            try:
                dumps(value)
            except Exception as err:
                reason = f"{type(err).__name__}: {' '.join(str(err).split())}"
                raise TransformError(f"field {name!r} cannot be sent to the trainer: {reason}") from err
        raise


def _call(collate: Collate, samples: list[Sample]) -> dict[str, Any]:
    try:
        result = collate(samples)
    except BaseException as err:  # also SystemExit: it must not end the thread that hands batches over
        reason = f"{type(err).__name__}: {' '.join(str(err).split())}"
        raise TransformError(f"collate failed on {len(samples)} samples: {reason}") from err
    if not isinstance(result, dict):
        raise OptionError(f"collate must return a dict of fields: got {type(result).__name__}")
    return {name: as_plain(name, value) for name, value in result.items()}
