"""What a worker process does that has a share of the rank's partitions: it reads them ahead and makes their rows.

So no byte passes between processes but what lies in the batch, and no interpreter's lock is shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError, LoaderError
from headrace.load.channel import dumps
from headrace.load.column_batch import ColumnRows
from headrace.load.decoded import CachedSteps, KeptSamples
from headrace.load.direct import DirectReader, Wanted
from headrace.load.fields import Specs
from headrace.load.job import Array, Job, num_readers
from headrace.load.marks import Doing, Lane, Where
from headrace.load.pages import PagesAhead
from headrace.load.plan import planned_runs
from headrace.load.reader import ReadAhead
from headrace.load.row_task import arrays_in, portable
from headrace.load.rows import Chain, Made, make_rows
from headrace.load.runs import LoadedRun
from headrace.load.slots import Slot
from headrace.load.tabled import Columns, Picked, gather
from headrace.load.tasks import Source, make_all
from headrace.order import Run
from headrace.telemetry import Meter, Reading
from headrace.transform import prepare_worker

I64 = NDArray[np.int64]
READ_STAGES = ("read", "verify")


class ShareOrder(NamedTuple):
    """Rows of a batch, all of one share."""

    generation: int
    """Another one than before begins anew with this batch."""
    epoch: int
    start: int
    """The first position of all ranks' batch, in the epoch."""
    rows: I64
    """Their numbers in the batch."""
    positions: I64
    pieces: I64
    samples: I64
    runs: I64
    real: NDArray[np.bool_]
    """False for repeats, whose runs are nobody's."""
    stop: int
    """Position (counted over epochs) after the batch's last."""
    places: Mapping[str, Array]
    """Where the batch's tensor fields lie."""
    condemned: Mapping[Where, str]
    uses_cache: bool
    """Whether decoded samples are kept."""

    @property
    def at(self) -> tuple[I64, I64, I64]:
        """Positions, pieces and samples."""
        return self.positions, self.pieces, self.samples


class ShareDone(NamedTuple):
    """What became of them."""

    rows: I64
    """Those that came as columns."""
    columns: ColumnRows
    others: Mapping[int, Made]
    readings: Mapping[str, Reading]
    """What the stages of reading have counted since the last answer."""
    num_reading: int = 0
    """How many reads may be under way at once."""
    error: HeadraceError | None = None
    """Why none of them can be had."""


@dataclass
class ShareTask:
    """It travels to the process."""

    job: Job
    specs: Specs
    share: int
    columns: Columns | None
    """Where runs come as columns; None: every row is made by itself."""
    is_direct: bool
    """Whether samples are read straight into the slot, and no run ahead: the page cache does that."""
    cached: CachedSteps | None = None
    """The steps with a cache of decoded samples; None where nothing is kept."""
    _kept: KeptSamples | None = field(default=None, init=False)
    _generation: int = field(default=-1, init=False)
    _reader: ReadAhead | None = field(default=None, init=False)
    _direct: DirectReader | None = field(default=None, init=False)
    _pages: PagesAhead | None = field(default=None, init=False)
    _meters: dict[str, Meter] = field(default_factory=dict, init=False)
    _told: dict[str, Reading] = field(default_factory=dict, init=False)

    @property
    def num_lanes(self) -> int:
        """One thread gathers, others read."""
        job = self.job
        readers = num_readers(job.threads, job.dataset.is_remote)
        return 1 + (-(-readers // job.processes) if job.dataset.is_remote else 1)

    def answer(self, order: ShareOrder, slot: Slot, lanes: Sequence[Lane]) -> bytes:
        """Read, check and gather the rows; a pickled `ShareDone`."""
        lanes[0].mark(order.epoch, order.start, Doing.READ)
        try:
            done = self._answer(order, slot, lanes)
        except HeadraceError as err:
            done = ShareDone(order.rows[:0], ColumnRows([], {}, {}), {}, {}, error=err)
        lanes[0].clear()
        try:
            return dumps(done)
        except Exception:
            return dumps(done._replace(others={row: portable(made) for row, made in done.others.items()}))

    def _answer(self, order: ShareOrder, slot: Slot, lanes: Sequence[Lane]) -> ShareDone:
        if self.cached is not None:
            self._kept = self._kept or KeptSamples(self.cached, self.job.dataset.pieces)
            self._kept.is_on = order.uses_cache
        if order.generation != self._generation:
            self._begin(order, lanes[1 : self.num_lanes])
        if self._direct is not None and self._pages is not None:
            read = self._direct.read(Wanted(order.epoch, order.rows, *order.at), slot)
            self._pages.release(order.stop)
            return ShareDone(*read, self._counted(), num_reading=1)
        return self._gathered(order, slot, lanes[0])

    def _gathered(self, order: ShareOrder, slot: Slot, lane: Lane) -> ShareDone:
        assert self._reader is not None  # it has begun
        arrays = arrays_in(slot, order.places)
        firsts, which = _runs_of(order)
        runs = [self._run(order, first, lane) for first in firsts]
        columns = [run.columns for run in runs if run.columns is not None]
        has_columns = np.array([run.columns is not None for run in runs], np.bool_)
        tabled = has_columns[which]
        rows, done = order.rows[tabled], ColumnRows([], {}, {})
        if columns:
            assert self.columns is not None  # else no run has any
            number = np.cumsum(has_columns) - 1  # of each run among those that have columns
            picked = Picked.of(columns, number[which[tabled]], order.samples[tabled])
            done = gather(self.columns, picked, slot, arrays, rows)
        sources: list[Source] = []
        for run_number in np.flatnonzero(~has_columns).tolist():
            sources += self._sources(order, np.flatnonzero(which == run_number), runs[run_number])
        others = self._others(sources, order, arrays, lane) if sources else {}
        self._reader.release(order.stop)
        return ShareDone(rows, done, others, self._counted(), self._reader.num_reading)

    def _begin(self, order: ShareOrder, lanes: Sequence[Lane]) -> None:
        for ahead in (self._reader, self._pages):
            if ahead is not None:
                ahead.stop()
        if self._generation < 0 and self.columns is None:
            prepare_worker()
        job, self._generation = self.job, order.generation
        runs = planned_runs(job, order.epoch, order.start, self.share, job.processes)
        memory = -(-job.memory_bytes // job.processes)
        self._meters, self._told = {stage: Meter() for stage in READ_STAGES}, {}
        if self.is_direct:
            self._direct = DirectReader(job.dataset, self._chain, self._meters)
            self._pages = PagesAhead(job.dataset, runs, memory)
        else:
            kept = None if self._kept is None else self._kept.has_run
            self._reader = ReadAhead(job.dataset, runs, memory, lanes, self._meters, self.columns, kept)

    @property
    def _chain(self) -> Chain:
        return Chain(self.job.ops, self.job.order.seed, self.specs, False, True, self.cached)

    def _run(self, order: ShareOrder, number: int, lane: Lane) -> LoadedRun:
        """The run in which a row lies."""
        assert self._reader is not None
        run_id, piece, sample = int(order.runs[number]), int(order.pieces[number]), int(order.samples[number])
        position = int(order.positions[number])
        if not order.real[number]:
            return self._reader.load(Run(run_id, piece, sample, sample + 1, position, position + 1), lane)
        run = self._reader.get((order.epoch, run_id), order.stop)
        if run is None:
            raise LoaderError("the loader was stopped")
        return run

    def _sources(self, order: ShareOrder, at: I64, run: LoadedRun) -> list[Source]:
        """Rows of one run."""
        sources = [Source(*numbers, run) for numbers in _numbers(order, at)]
        if self._kept is not None and self._reader is not None:
            for source in sources:
                source.keep(self._kept, int(order.pieces[at[0]]), self._reader)
        return sources

    def _others(
        self, sources: Sequence[Source], order: ShareOrder, arrays: dict[str, NDArray[Any]], lane: Lane
    ) -> dict[int, Made]:
        """Rows that are made one by one."""
        chain = self._chain
        return make_all(sources, order.condemned, lambda rows: make_rows(chain, rows, arrays, lane), lane)

    def _counted(self) -> dict[str, Reading]:
        readings = {stage: meter.read() for stage, meter in self._meters.items()}
        since = {stage: reading - self._told.get(stage, Reading()) for stage, reading in readings.items()}
        self._told = readings
        return since


def _numbers(order: ShareOrder, at: I64) -> Iterator[tuple[int, int, int, int]]:
    """(row, epoch, position, sample) of these rows."""
    columns = (order.rows, np.full(len(order.rows), order.epoch), order.positions, order.samples)
    return zip(*(column[at].tolist() for column in columns), strict=True)


def _runs_of(order: ShareOrder) -> tuple[list[int], I64]:
    """A row of each run, and which of these runs each row belongs to; each repeat is one by itself."""
    keys = np.where(order.real, order.runs, -1 - np.arange(len(order.runs)))
    _, firsts, which = np.unique(keys, return_index=True, return_inverse=True)
    return firsts.tolist(), which
