"""The page cache reads ahead for whoever reads samples from the local disk straight into batches."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator

import numpy as np

from headrace.dataset import Dataset, Joined
from headrace.errors import HeadraceError
from headrace.load.files import OpenFiles
from headrace.load.reader import LOT_BYTES, LOT_RUNS
from headrace.load.runs import PlannedRun
from headrace.order import Run

_LOOK_EVERY = 16
_SURE_AFTER = 16


class PagesAhead:
    """Has the page cache read the planned runs ahead, in the order of first need, within a bound on memory.

    One run in 16 is looked at: where the last 16 that were looked at lay in memory, nothing is asked for until one does
    not. For each question takes the interpreter's lock from the threads that read.
    """

    def __init__(self, dataset: Dataset | Joined, plan: Iterator[PlannedRun], memory_bytes: int) -> None:
        self._dataset, self._plan, self._memory = dataset, plan, memory_bytes
        self._files = OpenFiles(dataset)
        pieces = dataset.pieces
        self._bytes_per_sample = (pieces.bytes / np.maximum(pieces.samples, 1)).tolist()
        self._ends: list[tuple[int, int]] = []
        """(done, bytes) of what was asked for and is still needed."""
        self._held_bytes = 0
        self._num_runs = 0
        self._in_memory = 0
        """How many of the runs that were looked at last lay in memory, without one between that did not."""
        self._stopped = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="pages", daemon=True)
        self._thread.start()

    def release(self, upto: int) -> None:
        """No position before `upto` is needed any more."""
        with self._changed:
            while self._ends and self._ends[0][0] <= upto:
                self._held_bytes -= heapq.heappop(self._ends)[1]
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        self._files.close()

    def _work(self) -> None:
        asked: list[tuple[int, int]] = []
        num_bytes = 0
        for planned in self._plan:
            asked.append((planned.done, self._ask(planned.run)))
            num_bytes += asked[-1][1]
            most_bytes = min(LOT_BYTES, self._memory - self._held_bytes)
            if num_bytes < most_bytes and len(asked) < LOT_RUNS:
                continue
            if not self._hold(asked):
                return
            asked, num_bytes = [], 0
        self._hold(asked)

    def _hold(self, asked: list[tuple[int, int]]) -> bool:
        """Note what was asked for, and wait until there is room for more; False if it is not wanted any more."""
        with self._changed:
            for one in asked:
                heapq.heappush(self._ends, one)
                self._held_bytes += one[1]
            while self._held_bytes >= self._memory and not self._stopped:
                self._changed.wait()
            return not self._stopped

    def _ask(self, run: Run) -> int:
        """Have a run read; returns its bytes. What is wrong with it is told by whoever reads it for its samples."""
        self._num_runs += 1
        is_looked_at = self._num_runs % _LOOK_EVERY == 0
        if self._in_memory >= _SURE_AFTER and not is_looked_at:
            return int(self._bytes_per_sample[run.piece] * (run.last - run.first))
        try:
            file = self._files.get(self._dataset.pieces.place(run.piece)[0])
            ranges = self._dataset.piece(run.piece).ranges(run.first, run.last)
            if is_looked_at:
                self._in_memory = self._in_memory + 1 if all(file.is_in_memory(part.end - 1) for part in ranges) else 0
            for part in ranges:
                file.expect(*part)
        except HeadraceError:
            return 0
        return sum(part.length for part in ranges)
