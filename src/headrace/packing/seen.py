"""A set of digests in bounded memory, however many there are: what was met before is known exactly.

New digests go into a table in memory (numpy columns, open addressing: 16 bytes a slot and no object an entry). A full
table is written to a nameless temporary file as a sorted run, and several runs are merged into one, so that a look-up
asks few runs, each by one small read. With 128 bits a digest stands for what it was made of: that two of a billion
keys or images share one by chance has odds of 1 to 10^20.
"""

from __future__ import annotations

import os
import struct
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.packing.nearest import nearest_folder
from headrace.storage import storage_refusals, write_all

U64 = npt.NDArray[np.uint64]

MAX_SLOTS = 1 << 21
"""Of the table in memory: 32 MiB, and as much again while it is sorted."""

_MIN_SLOTS = 1 << 12
_LOAD = 0.6  # beyond, probing an open-addressed table takes long
_WORD_BITS = 64
_WORD = (1 << _WORD_BITS) - 1
_ROW = struct.Struct("<QQ")
_FENCE_ROWS = 256  # one look-up in a run reads this many rows: 4 KiB
_RUNS_MERGED = 8
_MERGED_ROWS = 1 << 18  # rows that a merge holds at a time


class Seen:
    """A set of 128-bit digests. Not thread-safe."""

    def __init__(self, folder: Path, max_slots: int = MAX_SLOTS) -> None:
        """What memory does not hold lies in nameless files on the disk of `folder`, or of the nearest one above it."""
        self._folder, self._max_slots = folder, max_slots
        self._runs: list[_Run] = []
        self._make_table(min(_MIN_SLOTS, max_slots))

    def __contains__(self, digest: int) -> bool:
        return self._find(*_words(digest)) < 0

    def add(self, digest: int) -> bool:
        """Add a digest, 0 <= digest < 2^128; False if it is there already."""
        high, low = _words(digest)
        at = self._find(high, low)
        if at < 0:
            return False
        self._low[at], self._high[at] = low, high
        self._num_rows += 1
        if self._num_rows > _LOAD * (self._mask + 1):
            self._make_room()
        return True

    def close(self) -> None:
        """Let go of the temporary files."""
        for run in self._runs:
            run.close()
        self._runs = []

    def _find(self, high: int, low: int) -> int:
        """The slot for these words, -1 if they are there already."""
        at = low & self._mask
        while found := self._low[at]:
            if found == low and self._high[at] == high:
                return -1
            at = (at + 1) & self._mask
        return -1 if any(run.has(high, low) for run in self._runs) else at

    def _make_table(self, num_slots: int) -> None:
        self._mask = num_slots - 1
        self._num_rows = 0
        self._lows, self._highs = np.zeros(num_slots, np.uint64), np.zeros(num_slots, np.uint64)
        self._low, self._high = self._lows.data, self._highs.data  # faster than the arrays for one element at a time

    def _make_room(self) -> None:
        used = self._lows != 0
        lows, highs = self._lows[used], self._highs[used]
        num_slots = 2 * (self._mask + 1)
        if num_slots > self._max_slots:
            self._spill(highs, lows)
            self._make_table(self._max_slots)
            return
        self._make_table(num_slots)
        self._num_rows = len(lows)
        _place(highs, lows, self._highs, self._lows)

    def _spill(self, highs: U64, lows: U64) -> None:
        self._runs.append(_Run.of(self._folder, iter([_sorted(highs, lows)]), level=0))
        level = 0
        while len(merged := [run for run in self._runs if run.level == level]) >= _RUNS_MERGED:
            level += 1
            whole = _Run.of(self._folder, _merged(merged), level)
            for run in merged:
                run.close()
            self._runs = [run for run in self._runs if run not in merged] + [whole]


def _words(digest: int) -> tuple[int, int]:
    return digest >> _WORD_BITS, (digest & _WORD) or 1  # 0 marks a slot that is free


class _Run:
    """Sorted rows (high word, low word) in a nameless file; in memory the high word of every 256th."""

    def __init__(self, folder: Path, fd: int, fences: U64, num_rows: int, level: int) -> None:
        self.num_rows, self.level = num_rows, level
        self._folder, self._fd, self._fences = folder, fd, fences.data  # quicker than the array for single elements

    @classmethod
    def of(cls, folder: Path, blocks: Iterator[U64], level: int) -> _Run:
        """The run of these rows, (n, 2) each and in order."""
        with storage_refusals("write a temporary file in", folder):
            with tempfile.TemporaryFile(dir=nearest_folder(folder)) as file:
                fd = os.dup(file.fileno())
            try:
                fences, num_rows = [], 0
                for rows in blocks:
                    write_all(fd, rows.astype("<u8", copy=False).tobytes())
                    fences.append(rows[-num_rows % _FENCE_ROWS :: _FENCE_ROWS, 0].copy())
                    num_rows += len(rows)
            except BaseException:
                os.close(fd)
                raise
        return cls(folder, fd, np.concatenate(fences), num_rows, level)

    def has(self, high: int, low: int) -> bool:
        """Whether this row is there."""
        # Equal high words of different rows are next to impossible, but may lie on both sides of a fence.
        first = max(0, bisect_left(self._fences, high) - 1)
        last = bisect_right(self._fences, high, first)
        data, row = self._read(first * _FENCE_ROWS, last * _FENCE_ROWS), _ROW.pack(high, low)
        at = data.find(row)
        while at % _ROW.size and at >= 0:  # the bytes of two neighbours
            at = data.find(row, at + 1)
        return at >= 0

    def rows(self, first: int, last: int) -> U64:
        """Rows first .. last-1, as far as there are so many."""
        return np.frombuffer(self._read(first, last), "<u8").reshape(-1, 2)

    def below(self, high: int) -> int:
        """How many rows have a smaller high word."""
        fence = max(0, bisect_left(self._fences, high) - 1)
        rows = self.rows(fence * _FENCE_ROWS, (fence + 1) * _FENCE_ROWS)
        return fence * _FENCE_ROWS + int(np.searchsorted(rows[:, 0], np.uint64(high), "left"))

    def close(self) -> None:
        """Close the file, and with it remove it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read(self, first: int, last: int) -> bytes:
        num_bytes = max(0, min(last, self.num_rows) - first) * _ROW.size
        with storage_refusals("read a temporary file in", self._folder):
            return os.pread(self._fd, num_bytes, first * _ROW.size)


def _merged(runs: list[_Run]) -> Iterator[U64]:
    """The rows of several runs in order: digests are spread evenly, so equal shares of their range are small."""
    num_rows = sum(run.num_rows for run in runs)
    num_shares = -(-num_rows // _MERGED_ROWS)
    begins = [0] * len(runs)
    for share in range(1, num_shares + 1):
        bound = share * (1 << _WORD_BITS) // num_shares
        ends = [run.below(bound) if share < num_shares else run.num_rows for run in runs]
        rows = np.concatenate([run.rows(a, b) for run, a, b in zip(runs, begins, ends, strict=True)])
        begins = ends
        if len(rows):
            yield _sorted(rows[:, 0], rows[:, 1])


def _sorted(highs: U64, lows: U64) -> U64:
    order = np.lexsort((lows, highs))
    return np.stack((highs[order], lows[order]), axis=1)


def _place(highs: U64, lows: U64, table_highs: U64, table_lows: U64) -> None:
    """Put distinct rows into an empty table: all at once those that find their slot free, then the rest one further."""
    mask = np.uint64(len(table_lows) - 1)
    rows, slots = np.arange(len(lows)), lows & mask
    while len(rows):
        free = np.flatnonzero(table_lows[slots] == 0)
        taken, first = np.unique(slots[free], return_index=True)
        placed = free[first]
        table_lows[taken], table_highs[taken] = lows[rows[placed]], highs[rows[placed]]
        stay = np.ones(len(rows), bool)
        stay[placed] = False
        rows, slots = rows[stay], (slots[stay] + np.uint64(1)) & mask
