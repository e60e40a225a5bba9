"""Runs of samples, and how their bytes are read and checked: one alone, or several that lie side by side at once."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.dataset import Dataset, Joined
from headrace.errors import DamagedError, HeadraceError
from headrace.formats import Opened, ShardIndex
from headrace.formats.index import Range
from headrace.load.buffers import BufferPool
from headrace.load.files import OpenFiles
from headrace.load.marks import Lane
from headrace.load.tabled import Columns, RunColumns
from headrace.load.whole import WholePieces
from headrace.order import Run
from headrace.storage import File
from headrace.telemetry import Meter

GAP_BYTES = 64 << 10
"""What may be read besides, and let go, so that several runs need one request."""


JOINED_FREE_BYTES = 32 << 20
"""Of buffers for such requests, kept to be used again."""


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


class Part(NamedTuple):
    """One run of several that are read by one request."""

    run: Run
    at: Range
    buffer: NDArray[np.uint8]

    @property
    def data(self) -> memoryview:
        return self.buffer.data[: self.at.length]


class RunReader:
    """Reads runs of one dataset. Thread-safe."""

    def __init__(
        self,
        dataset: Dataset | Joined,
        buffers: BufferPool,
        meters: dict[str, Meter],
        columns: Columns | None = None,
        need_not_read: Callable[[Run], bool] | None = None,
    ) -> None:
        """With `columns`, runs have theirs where that can be. `need_not_read` tells that all samples of a run can be
        had without its bytes.
        """
        self._dataset, self._pieces = dataset, dataset.pieces
        self._columns, self._need_not_read = columns, need_not_read
        self._files = OpenFiles(dataset)
        self._whole = WholePieces(dataset, self._files, meters)
        self._buffers, self._meters = buffers, meters
        self._joined = BufferPool(JOINED_FREE_BYTES)

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def load(self, run: Run, lane: Lane) -> LoadedRun:
        """Read and check a run; it is never `is_unread`."""
        with lane.reading(self._dataset.is_remote):
            return self._load(run)

    def load_all(self, runs: Sequence[Run], lane: Lane) -> list[LoadedRun]:
        """The same of some runs, in a store those that lie side by side by one request; those are unread that need not
        be read.
        """
        loaded: list[LoadedRun] = []
        for needs_reading, some in itertools.groupby(runs, self._needs_reading):
            if not needs_reading:
                loaded += map(self._unread, some)
            elif not self._dataset.is_remote:
                loaded += [self.load(run, lane) for run in some]
            else:
                for beside in _side_by_side(some):
                    with lane.reading(is_remote=True):
                        together = self._load_together(beside) if len(beside) > 1 else None
                        loaded += together or [self._load(run) for run in beside]
        return loaded

    def _needs_reading(self, run: Run) -> bool:
        return self._need_not_read is None or not self._need_not_read(run)

    def _unread(self, run: Run) -> LoadedRun:
        shard = self._pieces.place(run.piece)[0]
        return LoadedRun(self._dataset.shard_name(shard), None, None, is_unread=True)

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
        self._count(run.last - run.first, size, began, read)
        return LoadedRun(name, index, opened, size, buffer)

    def _load_together(self, runs: Sequence[Run]) -> list[LoadedRun] | None:
        """Neighbouring runs of one piece; None if they cannot be read together, or some are damaged: which, is found by
        reading each alone. What the store refuses, it would refuse for each.
        """
        shard = self._pieces.place(runs[0].piece)[0]
        name = self._dataset.shard_name(shard)
        try:
            index = self._dataset.piece(runs[0].piece)
            parts = self._parts(index, runs)
            if parts is None:
                return None
            began = time.perf_counter()
            fill_together(self._files.get(shard), parts, self._joined)
            read = time.perf_counter()
            opened = [index.open(part.run.first, part.run.last, part.data) for part in parts]
        except DamagedError:
            return None
        except HeadraceError as err:
            return [LoadedRun(name, None, None, error=err) for _ in runs]
        if any(one.damage for one in opened):
            return None
        self._count(runs[-1].last - runs[0].first, sum(part.at.length for part in parts), began, read)
        return [
            LoadedRun(name, index, one, part.at.length, part.buffer, self._columns_of(part.run, one))
            for part, one in zip(parts, opened, strict=True)
        ]

    def _parts(self, index: ShardIndex, runs: Sequence[Run]) -> list[Part] | None:
        """None where one range does not hold them, or much besides: neighbours in a selection may lie far apart."""
        ranges = [index.ranges(run.first, run.last) for run in runs] if index.is_ranged else []
        if not ranges or any(len(some) != 1 for some in ranges):
            return None
        begin, end = min(at.offset for (at,) in ranges), max(at.offset + at.length for (at,) in ranges)
        if end - begin > sum(at.length for (at,) in ranges) + GAP_BYTES:
            return None
        return [Part(run, at, self._buffers.take(at.length)) for run, (at,) in zip(runs, ranges, strict=True)]

    def _count(self, num_items: int, num_bytes: int, began: float, read: float) -> None:
        """From `began` to `read` the bytes were read, and from then to now checked."""
        self._meters["read"].add(items=num_items, num_bytes=num_bytes, busy_sec=read - began)
        self._meters["verify"].add(items=num_items, num_bytes=num_bytes, busy_sec=time.perf_counter() - read)

    def _columns_of(self, run: Run, opened: Opened | None) -> RunColumns | None:
        if self._columns is None or opened is None or opened.damage:
            return None
        return self._columns.of(opened.table(run.first, run.last))


def fill(data: memoryview, file: File, ranges: Sequence[Range]) -> None:
    """Read what lies at these ranges, one behind the other."""
    at = 0
    for part in ranges:
        file.read_into(part.offset, data[at : at + part.length])
        at += part.length


def fill_together(file: File, parts: Sequence[Part], buffers: BufferPool) -> None:
    """Fill each part's buffer by one read of all that lies from the first byte to the last of them."""
    begin = min(part.at.offset for part in parts)
    size = max(part.at.offset + part.at.length for part in parts) - begin
    whole = buffers.take(size)
    data = whole.data[:size]
    file.read_into(begin, data)
    for part in parts:
        at = part.at.offset - begin
        part.data[:] = data[at : at + part.at.length]
    buffers.give(whole)


def _side_by_side(runs: Iterator[Run]) -> Iterator[list[Run]]:
    """The runs, in lists of those of which each begins where the one before ends."""
    beside: list[Run] = []
    for run in runs:
        if beside and (run.piece, run.first) != (beside[-1].piece, beside[-1].last):
            yield beside
            beside = []
        beside.append(run)
    if beside:
        yield beside
