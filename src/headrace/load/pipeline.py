"""The feed inside the loader process: positions -> runs -> rows -> batches, in order and without end.

One thread plans batches and deals out their rows as soon as their bytes are there; workers transform rows; whoever
finishes a batch hands it over, in order. A batch takes a slot before its first row is made, so the number of slots
bounds how far the feed runs ahead.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError, LoaderError
from headrace.load.batch import Batch
from headrace.load.direct import Rows
from headrace.load.direct_batch import DirectBatch
from headrace.load.fields import Specs
from headrace.load.job import STAGES, Delivery, Job, Lanes, unexpected
from headrace.load.marks import Doing
from headrace.load.pages import PagesAhead
from headrace.load.reader import PlannedRun, ReadAhead
from headrace.load.slots import Slot, SlotPool
from headrace.load.tabled import Part, TabledBatch
from headrace.load.tasks import Parts, Source, Task
from headrace.load.workers import Workers
from headrace.order import Places, Run
from headrace.telemetry import Meter

PLANNED_SAMPLES = 8192
MAX_CHUNK_ROWS = 32
MAX_READ_ROWS = 256
METERS_EVERY_SEC = 0.2


@dataclass(frozen=True, slots=True)
class _Plan:
    """One batch to be made."""

    epoch: int
    step: int
    positions: NDArray[np.int64]
    real: NDArray[np.bool_]
    has_repeats: bool
    """Whether a rank, not necessarily this one, has repeats in this step."""
    places: Places
    stop: int
    """Position (counted over epochs) after its last."""


@dataclass(slots=True)
class _Pending:
    """A batch that is under way."""

    plan: _Plan
    batch: Batch | TabledBatch
    finished: bool = False


class Pipeline:
    """Delivers the batches from (epoch, step) on, through `deliver`, until it is stopped or one has an error."""

    def __init__(
        self,
        job: Job,
        specs: Specs | None,
        workers: Workers,
        slots: SlotPool,
        meters: dict[str, Meter],
        deliver: Callable[[Delivery, Slot | None], None],
        lanes: Lanes,
        generation: int,
        epoch: int,
        step: int,
    ) -> None:
        self._job = job
        self._specs = specs
        self._workers = workers
        self._slots = slots
        self._meters = meters
        self._deliver = deliver
        self._lanes = lanes
        self._generation = generation
        self._chunk_rows = _rows_per_chunk(job, workers.direct is not None)
        self._pending: deque[_Pending] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._stopped = False
        self._meters_sent = 0.0
        runs = _planned_runs(job, epoch, step * job.batches.global_batch_size)
        self._reading_lanes = lanes.read if workers.direct is None else lanes.transform
        self._ahead: ReadAhead | PagesAhead
        if workers.direct is None:
            self._ahead = ReadAhead(job.dataset, runs, job.memory_bytes, lanes.read, meters, workers.columns)
        else:
            self._ahead = PagesAhead(job.dataset, runs, job.memory_bytes)
        self._thread = threading.Thread(target=self._run, args=(epoch, step), name="plan", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End. When it returns nothing more is delivered, and slots that were not delivered are free again."""
        self._stopped = True
        self._slots.wake()
        self._ahead.stop()
        self._thread.join()
        with self._changed:
            while self._pending:
                self._changed.wait()

    def _run(self, epoch: int, step: int) -> None:
        try:
            for plan in _plans(self._job, epoch, step):
                if not self._make(plan):
                    return
        except BaseException as err:
            self._fail(err if isinstance(err, HeadraceError) else unexpected(err))

    def _make(self, plan: _Plan) -> bool:
        """Deal out one batch's rows, each chunk as soon as its bytes are there; False if stopped meanwhile."""
        slot = None if self._stopped else self._slots.acquire(lambda: self._stopped)
        if slot is None:
            return False
        try:
            parts = self._parts(plan)
            if parts is not None:
                self._make_tabled(plan, slot, parts)
                return True
            make = Batch if self._workers.direct is None else DirectBatch
            batch = make(slot, len(plan.real), plan.real if plan.has_repeats else None, self._specs)
        except BaseException:
            self._slots.release(slot.number)
            raise
        pending = _Pending(plan, batch)
        with self._changed:
            self._pending.append(pending)
        for first in range(0, batch.num_rows, self._chunk_rows):
            last = min(first + self._chunk_rows, batch.num_rows)
            if isinstance(batch, DirectBatch):
                self._workers.submit(_rows(plan, batch, first, last, partial(self._done, pending)))
                continue
            assert isinstance(self._ahead, ReadAhead)  # what is not read directly has been read ahead
            sources = self._sources_or_error(plan, first, last, self._ahead)
            if isinstance(sources, HeadraceError):
                self._done(pending, batch.fail(range(first, batch.num_rows), sources))
                return False
            self._workers.submit(Task(batch, sources, partial(self._done, pending)))
        return True

    def _parts(self, plan: _Plan) -> list[Part] | None:
        """The batch's rows by the runs that they lie in; None unless all of these have columns."""
        if self._workers.columns is None or not isinstance(self._ahead, ReadAhead) or plan.has_repeats:
            return None
        runs, parts = plan.places.run, []
        by_run = np.argsort(runs, kind="stable")
        for rows in np.split(by_run, np.flatnonzero(np.diff(runs[by_run])) + 1):
            run = self._ahead.get((plan.epoch, int(runs[rows[0]])), plan.stop)
            if run is None or run.columns is None:
                return None
            parts.append(Part(run.columns, rows, plan.places.sample[rows]))
        return parts

    def _make_tabled(self, plan: _Plan, slot: Slot, parts: list[Part]) -> None:
        assert self._workers.columns is not None  # there are parts
        batch = TabledBatch(slot, len(plan.real), self._workers.columns, plan.epoch, int(plan.positions[0]))
        pending = _Pending(plan, batch)
        with self._changed:
            self._pending.append(pending)
        self._workers.submit(Parts(batch, parts, partial(self._done, pending)))

    def _sources_or_error(self, plan: _Plan, first: int, last: int, reader: ReadAhead) -> list[Source] | HeadraceError:
        try:
            return self._sources(plan, first, last, reader) or LoaderError("the loader was stopped")
        except BaseException as err:
            return err if isinstance(err, HeadraceError) else unexpected(err)

    def _sources(self, plan: _Plan, first: int, last: int, reader: ReadAhead) -> list[Source] | None:
        """Where the raw samples of some rows lie, when they are there; None if stopped meanwhile."""
        places, sources = plan.places, []
        rows = zip(
            range(first, last),
            plan.real[first:last].tolist(),
            plan.positions[first:last].tolist(),
            places.piece[first:last].tolist(),
            places.sample[first:last].tolist(),
            places.run[first:last].tolist(),
            strict=True,
        )
        for row, real, position, piece, sample, run_id in rows:
            if real:
                run = reader.get((plan.epoch, run_id), plan.stop)
            else:  # a repeat: its run may be gone, or another rank's
                run = reader.load(Run(run_id, piece, sample, sample + 1, position, position + 1), self._lanes.plan)
            if run is None:
                return None
            sources.append(Source(row, plan.epoch, position, sample, run))
        return sources

    def _done(self, pending: _Pending, is_last: bool) -> None:
        """Rows of a batch are made; after its last, hand over the batches at the head of the line."""
        if not is_last:
            return
        with self._changed:
            pending.finished = True
            while self._pending and self._pending[0].finished:
                head = self._pending.popleft()
                self._hand_over(head)
                self._changed.notify_all()

    def _hand_over(self, pending: _Pending) -> None:
        if self._stopped:
            self._slots.release(pending.batch.slot.number)
            return
        delivery = self._delivery(pending)
        if delivery.error is not None:
            self._stopped = True
            self._slots.wake()
        self._deliver(delivery, pending.batch.slot)
        self._ahead.release(pending.plan.stop)

    def _delivery(self, pending: _Pending) -> Delivery:
        job, plan, batch = self._job, pending.plan, pending.batch
        delivery = Delivery(self._generation, plan.epoch, plan.step, batch.slot.number)
        self._lanes.collate.mark(plan.epoch, plan.step, Doing.COLLATE)
        try:
            batch.deliver(delivery, job.collate, job.on_error, self._meters["collate"])
        except BaseException as err:
            delivery.error = err if isinstance(err, HeadraceError) else unexpected(err)
        self._lanes.collate.clear()
        ends_epoch = plan.stop % job.batches.num_samples == 0
        if ends_epoch or time.monotonic() - self._meters_sent > METERS_EVERY_SEC:
            delivery.stages = {stage: self._meters[stage].read() for stage in STAGES}
            delivery.num_readers = len(self._reading_lanes)
            self._meters_sent = time.monotonic()
        return delivery

    def _fail(self, error: HeadraceError) -> None:
        """Deliver an error that is no batch's, after the batches before it."""
        with self._changed:
            while self._pending and not self._stopped:
                self._changed.wait()
            if not self._stopped:
                self._stopped = True
                self._deliver(Delivery(self._generation, error=error), None)


def _rows(plan: _Plan, batch: DirectBatch, first: int, last: int, done: Callable[[bool], None]) -> Rows:
    positions, pieces, samples = (
        column[first:last] for column in (plan.positions, plan.places.piece, plan.places.sample)
    )
    return Rows(batch, first, plan.epoch, positions, pieces, samples, done)


def _rows_per_chunk(job: Job, is_direct: bool) -> int:
    rows = job.batches.global_batch_size // job.batches.world_size
    workers = job.processes if job.processes > 1 else job.threads
    if is_direct:  # they take equally long, and each chunk has its price
        return max(1, min(MAX_READ_ROWS, -(-rows // (2 * workers))))
    return max(1, min(MAX_CHUNK_ROWS, -(-rows // (4 * workers))))


def _planned_runs(job: Job, first_epoch: int, first_position: int) -> Iterator[PlannedRun]:
    """The runs that this rank needs from a position on, over all epochs to come."""
    batches, num_samples = job.batches, job.batches.num_samples
    if batches.rank >= num_samples:
        return  # it has repeats only, which are read one by one
    for epoch in itertools.count(first_epoch):
        start = first_position if epoch == first_epoch else 0
        base = epoch * num_samples
        for run in job.order.epoch(epoch).runs(batches.rank, batches.world_size, start, batches.stop):
            yield PlannedRun((epoch, run.id), run, base + run.need, base + run.done)


def _plans(job: Job, first_epoch: int, first_step: int) -> Iterator[_Plan]:
    """The batches from a step on, planned some thousand samples at a time."""
    batches = job.batches
    steps_at_once = max(1, PLANNED_SAMPLES * batches.world_size // batches.global_batch_size)
    for epoch in itertools.count(first_epoch):
        order = job.order.epoch(epoch)
        for first in range(first_step if epoch == first_epoch else 0, batches.num_steps, steps_at_once):
            last = min(first + steps_at_once, batches.num_steps)
            positions, real, sizes = batches.positions(first, last)
            places = order.locate(positions)
            ends = np.cumsum(sizes).tolist()
            for step, size, end in zip(range(first, last), sizes, ends, strict=True):
                part = slice(end - size, end)
                stop = (step + 1) * batches.global_batch_size if step + 1 < batches.num_steps else batches.num_samples
                yield _Plan(
                    epoch,
                    step,
                    positions[part],
                    real[part],
                    batches.has_repeats(step),
                    Places(places.piece[part], places.sample[part], places.run[part]),
                    epoch * batches.num_samples + stop,
                )
