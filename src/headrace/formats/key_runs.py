"""Hashes of keys brought into order, with the numbers of their samples, in bounded memory whatever their number.

Runs of keys are sorted, kept in an unnamed file, and merged range by range of their hashes. Equal hashes come together,
so whoever goes through them meets every key that is there twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from headrace.formats.columns import U64
from headrace.storage import storage_refusals

RUN_KEYS = 1 << 21
_NUM_RANGES = 1 << 12
_RANGE_STARTS = np.arange(_NUM_RANGES, dtype=np.uint64) << np.uint64(52)

Entries = npt.NDArray[Any]
ENTRY = np.dtype([("hash", "<u8"), ("number", "<u8")])


def shared_hashes(hashes: Iterable[U64], folder: Path) -> Iterator[U64]:
    """For each hash that several of the samples have, their numbers, in order; hashes come in storage order.

    What memory does not hold lies in an unnamed file in the folder. Memory as for `headrace.formats.keys.write_keys`.
    """
    with storage_refusals("write a temporary file in", folder), KeyRuns(folder) as runs:
        for chunk in hashes:
            runs.add(chunk)
        for entries in runs.merged():
            yield from shared(entries)


def shared(entries: Entries) -> Iterator[U64]:
    """The numbers of those of the entries, which are in order, that have the same hash, hash by hash."""
    hashes, numbers = entries["hash"], entries["number"]
    bounds = np.concatenate(([0], np.flatnonzero(hashes[1:] != hashes[:-1]) + 1, [len(hashes)]))
    for k in np.flatnonzero(np.diff(bounds) > 1).tolist():
        yield numbers[bounds[k] : bounds[k + 1]]


class KeyRuns:
    """Keys on their way into order: in memory at first, then as sorted runs in a file."""

    def __init__(self, folder: Path) -> None:
        self.num_keys = 0
        self._folder = folder
        self._chunks: list[Entries] = []
        self._num_waiting = 0
        self._file: IO[bytes] | None = None
        self._bounds: list[npt.NDArray[np.int64]] = []
        """For each run the number, in the file, of its first key in each range of hashes, and of the one behind it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, hashes: U64) -> None:
        """The hashes of the samples that come next."""
        for at in range(0, len(hashes), RUN_KEYS):
            part = hashes[at : at + RUN_KEYS]
            entries = np.empty(len(part), ENTRY)
            entries["hash"] = part
            entries["number"] = np.arange(self.num_keys, self.num_keys + len(part))
            self.num_keys += len(part)
            if self._num_waiting + len(part) > RUN_KEYS:
                self._spill()
            self._chunks.append(entries)
            self._num_waiting += len(part)

    def merged(self) -> Iterator[Entries]:
        """Every key in order of its hash, equal ones in the order in which they came."""
        if self._file is None:
            yield self._sorted()
            return
        self._spill()
        bounds = np.stack(self._bounds)
        counts = np.diff(bounds, axis=1).sum(axis=0)
        first = 0
        while first < _NUM_RANGES:
            last, total = first + 1, int(counts[first])
            while last < _NUM_RANGES and total + counts[last] <= RUN_KEYS:
                total += int(counts[last])
                last += 1
            parts = [self._read(int(run[first]), int(run[last])) for run in bounds]
            yield _in_order(np.concatenate(parts))
            first = last

    def _sorted(self) -> Entries:
        entries = np.concatenate(self._chunks) if self._chunks else np.empty(0, ENTRY)
        self._chunks, self._num_waiting = [], 0
        return _in_order(entries)

    def _spill(self) -> None:
        entries = self._sorted()
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  # closed by __exit__
        before = self._file.tell() // ENTRY.itemsize
        starts = np.searchsorted(entries["hash"], _RANGE_STARTS)
        self._bounds.append(np.append(starts, len(entries)) + before)
        self._file.write(entries.data)

    def _read(self, first: int, last: int) -> Entries:
        assert self._file is not None
        entries = np.empty(last - first, ENTRY)
        self._file.seek(first * ENTRY.itemsize)
        count = self._file.readinto(entries.view(np.uint8).data)  # type: ignore[attr-defined]
        assert count == entries.nbytes
        return entries


def _in_order(entries: Entries) -> Entries:
    return entries[np.argsort(entries["hash"], kind="stable")]
