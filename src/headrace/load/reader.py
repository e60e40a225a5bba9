"""Reading ahead: the runs that a rank needs, in the order of first need, within a bound on memory.

A few threads read whole runs (blocks, or a partition's part of one) by one `pread` each and check every sample's
checksum. A run stays until no later position uses it; both ends are arithmetic (see `order`), so nothing is counted
sample by sample. The bound may be passed only for what the batch now being made is waiting for.

From a store, small runs that lie side by side and are needed soon are read by one request: a store answers after tens
of milliseconds whatever is asked, and asks to be paid by the request.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from headrace.dataset import Dataset, Joined
from headrace.load.buffers import BufferPool
from headrace.load.job import REMOTE_READERS
from headrace.load.marks import Lane
from headrace.load.pace import Pace
from headrace.load.runs import LoadedRun, PlannedRun, RunReader
from headrace.load.tabled import Columns
from headrace.load.upcoming import Upcoming
from headrace.order import Run
from headrace.telemetry import Meter

LOT_BYTES, LOT_RUNS = 1 << 20, 64
"""Small runs are read some at a time, so that what it costs to take turns is paid once for this many."""
JOINED_BYTES = 2 << 20
"""From a store those that lie side by side are read by one request, up to this many."""
EPOCHS_AHEAD = 2
"""How many epochs beyond the one that is needed are read ahead, where there is room."""
LOOK_SHARE = 0.9
"""Of the memory: how far ahead in the plan such neighbours are looked for. What is read early leaves less room for what
is needed first."""


class ReadAhead:
    """Reads planned runs with threads of its own. `get` and `release` are for one consumer."""

    def __init__(
        self,
        dataset: Dataset | Joined,
        plan: Iterator[PlannedRun],
        memory_bytes: int,
        lanes: Sequence[Lane],
        meters: dict[str, Meter],
        columns: Columns | None = None,
        need_not_read: Callable[[Run], bool] | None = None,
    ) -> None:
        """At most as many threads as there are lanes for their marks; for a store, as many as its pace says.

        With `columns`, runs have theirs where that can be. `need_not_read` tells, when a run's turn has come, that all
        its samples can be had without its bytes.
        """
        self._pieces = dataset.pieces
        self._bytes_per_sample = dataset.pieces.bytes / np.maximum(1, dataset.pieces.samples)
        self._holders: Counter[int] = Counter()
        """How many held runs share each piece that is unpacked as a whole."""
        self._piece_of: dict[tuple[int, int], int] = {}
        self._memory = memory_bytes
        self._joins = dataset.is_remote
        self._joined_bytes = min(JOINED_BYTES, memory_bytes // 8)
        look_bytes = min(int(LOOK_SHARE * memory_bytes), int(dataset.pieces.bytes.sum())) if self._joins else 0
        self._upcoming = Upcoming(plan, look_bytes, self._size_of)
        self._growth = 1.0
        """How many times as much as expected runs turned out to hold, if more."""
        self._passing: dict[int, int] = {}
        """Bytes that what a thread reads together takes once more, until each run has its own."""
        self._buffers = BufferPool(memory_bytes)
        self._runs = RunReader(dataset, self._buffers, meters, columns, need_not_read)
        self._meters = meters
        self._changed = threading.Condition()
        self._loaded: dict[tuple[int, int], LoadedRun | None] = {}
        self._ends: list[tuple[int, tuple[int, int]]] = []
        self._held: dict[tuple[int, int], int] = {}
        self._held_bytes = 0
        self._epoch: int | None = None
        """The latest that a run was asked for of; at first the one that reading begins with."""
        self._wanted = self._first_batch = 0
        """Positions below which somebody waits for their runs now, and waited at the start."""
        self._stopped = False
        self._failure: BaseException | None = None
        self._lanes = lanes
        self._pace = Pace(min(len(lanes), REMOTE_READERS) if dataset.is_remote else len(lanes), len(lanes))
        self._num_idle = 0
        self._threads: list[threading.Thread] = []
        with self._changed:
            self._start_threads()

    @property
    def num_reading(self) -> int:
        """How many reads may be under way at once, now."""
        return self._pace.active

    def _start_threads(self) -> None:
        """Those that the pace asks for; with the lock held."""
        for number in range(len(self._threads), self._pace.active):
            work = threading.Thread(target=self._work, args=(number, self._lanes[number]), name="read", daemon=True)
            self._threads.append(work)
            work.start()

    def get(self, key: tuple[int, int], upto: int) -> LoadedRun | None:
        """The bytes of a run, when they are there; None once stopped. No position from `upto` on is needed yet.

        Raises what ended a reading thread.
        """
        if key[0] != self._epoch:
            self._turn_to(key[0])
        loaded = self._loaded.get(key)
        if loaded is not None:
            return loaded
        with self._changed:
            self._first_batch = self._first_batch or upto
            self._wanted = max(self._wanted, upto)
            self._changed.notify_all()
            began = time.perf_counter()
            while (loaded := self._loaded.get(key)) is None and not self._stopped:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            self._pace.waited(time.perf_counter() - began)
        return loaded

    def _turn_to(self, epoch: int) -> None:
        """Runs of this epoch are needed now, so those of the next ones may be read."""
        with self._changed:
            if self._epoch is None or epoch > self._epoch:
                self._epoch = epoch
                self._changed.notify_all()

    def release(self, upto: int) -> None:
        """Forget the runs that no position from `upto` on uses."""
        with self._changed:
            while self._ends and self._ends[0][0] <= upto:
                _, key = heapq.heappop(self._ends)
                loaded = self._loaded.pop(key)
                if loaded is not None and loaded.buffer is not None:
                    self._buffers.give(loaded.buffer)
                self._held_bytes -= self._held.pop(key)
                self._let_go(key)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the threads and close the files."""
        self.let_go()
        for thread in self._threads:
            thread.join()
        self._runs.close()

    def let_go(self) -> None:
        """Have the threads end, without waiting for them: wherever the garbage collector runs, one of them even."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def load(self, run: Run, lane: Lane) -> LoadedRun:
        """Read and check a run now, whatever the plan and the bound; it is never `is_unread`."""
        return self._runs.load(run, lane)

    def _work(self, number: int, lane: Lane) -> None:
        try:
            while taken := self._take(number):
                loaded = self._runs.load_all([planned.run for planned in taken], lane)
                with self._changed:
                    self._held_bytes -= self._passing.pop(number, 0)
                    self._put(taken, loaded)
                    self._start_threads()
                    self._changed.notify_all()
        except BaseException as err:  # whatever it was, nobody may wait for this thread for ever
            with self._changed:
                self._failure = err
                self._changed.notify_all()

    def _put(self, taken: Sequence[PlannedRun], loaded: Sequence[LoadedRun]) -> None:
        for planned, run in zip(taken, loaded, strict=True):
            if planned.key in self._loaded:  # else it was let go unused, and is not asked for again
                self._loaded[planned.key] = run
                if not run.is_unread:  # which counts as if it were read: the plan goes on without end
                    self._count(planned.key, run.num_bytes)
                    self._learn(planned.run, run.num_bytes)
        num_bytes = sum(
            self._share_of(planned.run) for planned, run in zip(taken, loaded, strict=True) if not run.is_unread
        )
        self._pace.read(num_bytes, self._num_idle)

    def _learn(self, run: Run, num_bytes: int) -> None:
        """What a run holds is known beforehand but for the blocks that its checksums cover."""
        self._growth = max(1.0, 0.9 * self._growth + 0.1 * num_bytes / self._share_of(run))

    def _take(self, number: int) -> list[PlannedRun]:
        """The next runs to read, some at a time where they are small, in storage order; none at the end."""
        began = time.perf_counter()
        taken: list[PlannedRun] = []
        with self._changed:
            while not self._stopped and number >= self._pace.active:
                self._changed.wait()
            self._num_idle += 1
            while not self._stopped and (first := self._upcoming.first) is not None and not self._may_read(first):
                self._changed.wait()
            self._num_idle -= 1
            if not self._stopped:
                taken = self._side_by_side() if self._joins else self._next_ones()
                if self._joins and len(taken) > 1:
                    self._passing[number] = sum(self._expected_bytes(planned.run) for planned in taken)
                    self._held_bytes += self._passing[number]
        self._meters["read"].add(wait_sec=time.perf_counter() - began)
        return taken

    def _next_ones(self) -> list[PlannedRun]:
        taken: list[PlannedRun] = []
        num_bytes = 0
        while (planned := self._upcoming.first) is not None and self._may_read(planned):
            num_bytes += self._hold(planned)
            taken.append(planned)
            if num_bytes >= LOT_BYTES or len(taken) == LOT_RUNS:
                break
        return taken

    def _side_by_side(self) -> list[PlannedRun]:
        """The next, and what lies before and behind it and is needed soon."""
        planned = self._upcoming.first
        if planned is None:
            return []
        num_bytes = self._hold(planned)
        taken = deque([planned])
        if planned.need < self._first_batch:
            return [planned]  # which comes sooner without its neighbours
        while planned := self._upcoming.behind(taken[-1]) or self._upcoming.before(taken[0]):
            num_bytes += self._expected_bytes(planned.run)
            if num_bytes > self._joined_bytes or not self._fits(2 * num_bytes):
                break
            if planned.run.first == taken[-1].run.last:
                taken.append(planned)
            else:
                taken.appendleft(planned)
            self._hold(planned)
        return list(taken)

    def _hold(self, planned: PlannedRun) -> int:
        num_bytes = self._expected_bytes(planned.run)
        self._upcoming.take(planned)
        heapq.heappush(self._ends, (planned.done, planned.key))
        self._loaded[planned.key] = None
        piece = planned.run.piece
        if self._pieces.is_whole[piece]:
            self._piece_of[planned.key] = piece
            self._holders[piece] += 1
            self._held_bytes += num_bytes
            self._held[planned.key] = 0  # the piece holds it, for all its runs
        else:
            self._count(planned.key, num_bytes)
        return num_bytes

    def _let_go(self, key: tuple[int, int]) -> None:
        piece = self._piece_of.pop(key, None)
        if piece is not None:
            self._holders[piece] -= 1
            if not self._holders[piece]:
                del self._holders[piece]
                self._held_bytes -= int(self._pieces.bytes[piece])

    def _count(self, key: tuple[int, int], num_bytes: int) -> None:
        """What a run holds: at first as expected, then as read, which is more where checksums cover larger blocks."""
        self._held_bytes += num_bytes - self._held.get(key, 0)
        self._held[key] = num_bytes

    def _may_read(self, planned: PlannedRun) -> bool:
        """Whether there is room for it; from a store, for as much as is worth a request.

        Not of epochs that are far away, whatever they take: of a piece that is unpacked as a whole, and held, any
        number of runs takes nothing by the count, and each its objects.
        """
        if self._epoch is None:
            self._epoch = planned.key[0]
        if planned.key[0] > self._epoch + EPOCHS_AHEAD:
            return False
        num_bytes = self._expected_bytes(planned.run)
        return (
            self._fits(max(num_bytes, self._joined_bytes) if self._joins else num_bytes) or planned.need < self._wanted
        )

    def _fits(self, num_bytes: int) -> bool:
        return self._held_bytes + num_bytes <= self._memory

    def _expected_bytes(self, run: Run) -> int:
        if self._pieces.is_whole[run.piece]:
            return 0 if run.piece in self._holders else self._size_of(run)
        return int(self._growth * self._size_of(run))

    def _size_of(self, run: Run) -> int:
        """What it takes to have it: all of a piece that is unpacked as a whole."""
        return int(self._pieces.bytes[run.piece]) if self._pieces.is_whole[run.piece] else self._share_of(run)

    def _share_of(self, run: Run) -> int:
        """Its own bytes, above 0: samples of a piece are taken to be of one size."""
        return int(self._bytes_per_sample[run.piece] * (run.last - run.first)) + 1
