"""Reading ahead: the runs that a rank needs, in the order of first need, within a bound on memory.

A few threads read whole runs (blocks, or a partition's part of one) by one `pread` each and check every sample's
checksum. A run stays until no later position uses it; both ends are arithmetic (see `order`), so nothing is counted
sample by sample. The bound may be passed only for what the batch now being made is waiting for.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.dataset import Dataset, Joined
from headrace.errors import HeadraceError
from headrace.formats import Opened, ShardIndex
from headrace.formats.index import Range
from headrace.load.buffers import BufferPool
from headrace.load.files import OpenFiles
from headrace.load.job import REMOTE_READERS
from headrace.load.marks import Lane
from headrace.load.pace import Pace
from headrace.load.tabled import Columns, RunColumns
from headrace.load.whole import WholePieces
from headrace.order import Run
from headrace.storage import File
from headrace.telemetry import Meter

LOT_BYTES, LOT_RUNS = 1 << 20, 64
"""Small runs are read some at a time, so that what it costs to take turns is paid once for this many. From a store each
is taken by itself: there waiting for the answer costs most, and threads wait side by side."""


class PlannedRun(NamedTuple):
    """A run, its need and done counted over epochs: epoch x samples + position."""

    key: tuple[int, int]
    """What names the run: (epoch, its id)."""
    run: Run
    need: int
    done: int


@dataclass(slots=True)
class LoadedRun:
    """A run's samples. With `error`, none of them could be had."""

    shard_name: str
    index: ShardIndex | None
    opened: Opened | None
    num_bytes: int = 0
    """Memory that the run alone holds."""
    buffer: NDArray[np.uint8] | None = None
    columns: RunColumns | None = None
    """The samples as batches take them at once, where that can be."""
    error: HeadraceError | None = None
    is_unread: bool = False
    """Whether nothing was read, since all its samples were decoded before and kept."""


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
        self._dataset = dataset
        self._columns = columns
        self._need_not_read = need_not_read
        self._files = OpenFiles(dataset)
        self._pieces = dataset.pieces
        self._lot_runs = 1 if dataset.is_remote else LOT_RUNS
        self._bytes_per_sample = dataset.pieces.bytes / np.maximum(1, dataset.pieces.samples)
        self._whole = WholePieces(dataset, self._files, meters)
        self._holders: Counter[int] = Counter()
        """How many held runs share each piece that is unpacked as a whole."""
        self._piece_of: dict[tuple[int, int], int] = {}
        self._plan = plan
        self._next = next(plan, None)
        self._memory = memory_bytes
        self._buffers = BufferPool(memory_bytes)
        self._meters = meters
        self._changed = threading.Condition()
        self._loaded: dict[tuple[int, int], LoadedRun | None] = {}
        self._ends: list[tuple[int, tuple[int, int]]] = []
        self._held: dict[tuple[int, int], int] = {}
        self._held_bytes = 0
        self._wanted = 0
        self._stopped = False
        self._failure: BaseException | None = None
        self._lanes = lanes
        self._pace = Pace(min(len(lanes), REMOTE_READERS) if dataset.is_remote else len(lanes), len(lanes))
        self._num_idle = 0
        self._threads: list[threading.Thread] = []
        self._start_threads()

    @property
    def num_reading(self) -> int:
        """How many reads may be under way at once, now."""
        return self._pace.active

    def _start_threads(self) -> None:
        """Those that the pace asks for."""
        for number in range(len(self._threads), self._pace.active):
            work = threading.Thread(target=self._work, args=(number, self._lanes[number]), name="read", daemon=True)
            self._threads.append(work)
            work.start()

    def get(self, key: tuple[int, int], upto: int) -> LoadedRun | None:
        """The bytes of a run, when they are there; None once stopped. No position from `upto` on is needed yet.

        Raises what ended a reading thread.
        """
        loaded = self._loaded.get(key)
        if loaded is not None:
            return loaded
        with self._changed:
            self._wanted = max(self._wanted, upto)
            self._changed.notify_all()
            began = time.perf_counter()
            while (loaded := self._loaded.get(key)) is None and not self._stopped:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            self._pace.waited(time.perf_counter() - began)
        return loaded

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
        self._files.close()

    def let_go(self) -> None:
        """Have the threads end, without waiting for them: wherever the garbage collector runs, one of them even."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def load(self, run: Run, lane: Lane) -> LoadedRun:
        """Read and check a run now, whatever the plan and the bound; it is never `is_unread`."""
        with lane.reading(self._dataset.is_remote):
            return self._load(run)

    def _load(self, run: Run) -> LoadedRun:
        shard = self._pieces.place(run.piece)[0]
        name = self._dataset.shard_name(shard)
        try:
            index = self._dataset.piece(run.piece)
            if not index.is_ranged:
                loaded = LoadedRun(name, index, self._whole.get(run.piece, index, shard))
            else:
                loaded = self._load_range(run, index, shard, name)
            loaded.columns = self._columns_of(run, loaded.opened)
            return loaded
        except HeadraceError as err:
            return LoadedRun(name, None, None, error=err)

    def _columns_of(self, run: Run, opened: Opened | None) -> RunColumns | None:
        if self._columns is None or opened is None or opened.damage:
            return None
        return self._columns.of(opened.table(run.first, run.last))

    def _load_range(self, run: Run, index: ShardIndex, shard: int, name: str) -> LoadedRun:
        ranges = index.ranges(run.first, run.last)
        size = sum(part.length for part in ranges)
        began = time.perf_counter()
        buffer = self._buffers.take(size)
        data, file = buffer.data[:size], self._files.get(shard)
        fill(data, file, ranges)
        read = time.perf_counter()
        opened = index.open(run.first, run.last, data)
        if opened.damage and file.is_remote:  # the network may have garbled it: once more
            for part in ranges:
                file.forget(*part)
            fill(data, file, ranges)
            opened = index.open(run.first, run.last, data)
        checked = time.perf_counter()
        self._meters["read"].add(items=run.last - run.first, num_bytes=size, busy_sec=read - began)
        self._meters["verify"].add(items=run.last - run.first, num_bytes=size, busy_sec=checked - read)
        return LoadedRun(name, index, opened, size, buffer)

    def _work(self, number: int, lane: Lane) -> None:
        try:
            while planned := self._take(number):
                loaded = [(one.key, self._unread(one.run) or self.load(one.run, lane)) for one in planned]
                with self._changed:
                    for key, run in loaded:
                        if key in self._loaded:  # else it was let go unused, and is not asked for again
                            self._loaded[key] = run
                            if not run.is_unread:  # which counts as if it were read: the plan goes on without end
                                self._count(key, run.num_bytes)
                    self._pace.read(sum(run.num_bytes for _, run in loaded), self._num_idle)
                    self._start_threads()
                    self._changed.notify_all()
        except BaseException as err:  # whatever it was, nobody may wait for this thread for ever
            with self._changed:
                self._failure = err
                self._changed.notify_all()

    def _unread(self, run: Run) -> LoadedRun | None:
        if self._need_not_read is None or not self._need_not_read(run):
            return None
        return LoadedRun(self._dataset.shard_name(self._pieces.place(run.piece)[0]), None, None, is_unread=True)

    def _take(self, number: int) -> list[PlannedRun]:
        """The next runs to read, some at a time where they are small; none at the end."""
        began = time.perf_counter()
        taken: list[PlannedRun] = []
        num_bytes = 0
        with self._changed:
            while not self._stopped and number >= self._pace.active:
                self._changed.wait()
            self._num_idle += 1
            while not self._stopped and self._next is not None and not self._may_read(self._next):
                self._changed.wait()
            self._num_idle -= 1
            while not self._stopped and self._next is not None and self._may_read(self._next):
                num_bytes += self._hold(self._next)
                taken.append(self._next)
                self._next = next(self._plan, None)
                if num_bytes >= LOT_BYTES or len(taken) == self._lot_runs:
                    break
        self._meters["read"].add(wait_sec=time.perf_counter() - began)
        return taken

    def _hold(self, planned: PlannedRun) -> int:
        num_bytes = self._expected_bytes(planned.run)
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
        fits = self._held_bytes + self._expected_bytes(planned.run) <= self._memory
        return fits or planned.need < self._wanted

    def _expected_bytes(self, run: Run) -> int:
        if self._pieces.is_whole[run.piece]:
            return 0 if run.piece in self._holders else int(self._pieces.bytes[run.piece])
        return int(self._bytes_per_sample[run.piece] * (run.last - run.first)) + 1


def fill(data: memoryview, file: File, ranges: Sequence[Range]) -> None:
    """Read what lies at these ranges, one behind the other."""
    at = 0
    for part in ranges:
        file.read_into(part.offset, data[at : at + part.length])
        at += part.length
