"""The feed inside the loader process: positions -> runs -> rows -> batches, in order and without end.

One thread plans batches and deals out their rows as soon as their bytes are there; workers transform rows; whoever
finishes a batch hands it over, in order. A batch takes a slot before its first row is made, so the number of slots
bounds how far the feed runs ahead.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from headrace.errors import HeadraceError, LoaderError
from headrace.load.batch import Batch
from headrace.load.column_batch import ColumnBatch
from headrace.load.direct import Rows, Wanted
from headrace.load.fields import Specs
from headrace.load.job import STAGES, Delivery, Job, Lanes, unexpected
from headrace.load.marks import Doing
from headrace.load.pages import PagesAhead
from headrace.load.plan import Plan, planned_runs, plans, shares_of
from headrace.load.reader import ReadAhead
from headrace.load.remote import ShareRows
from headrace.load.share_task import ShareOrder
from headrace.load.slots import Slot, SlotPool
from headrace.load.tabled import Picked
from headrace.load.tasks import FromRuns, Source, Task
from headrace.load.workers import Workers
from headrace.order import Run
from headrace.telemetry import Meter

MAX_CHUNK_ROWS = 32
MAX_READ_ROWS = 256
METERS_EVERY_SEC = 0.2


@dataclass(slots=True)
class _Pending:
    """A batch that is under way."""

    plan: Plan
    batch: Batch
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
        self._pending: deque[_Pending] = deque()
        self._emptied = time.perf_counter()
        """When the last batch that was under way was made."""
        self._changed = threading.Condition(threading.RLock())
        self._stopped = False
        self._meters_sent = 0.0
        self._ahead = self._read_ahead(epoch, step)
        self._reading: dict[int, int] = {}
        """How many reads each process may have under way at once, where each has a share."""
        self._thread = threading.Thread(target=self._run, args=(epoch, step), name="plan", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End. When it returns nothing more is delivered, and slots that were not delivered are free again."""
        self._stopped = True
        self._slots.wake()
        if self._ahead is not None:
            self._ahead.stop()
        self._thread.join()
        with self._changed:
            while self._pending:
                self._changed.wait()

    def _read_ahead(self, epoch: int, step: int) -> ReadAhead | PagesAhead | None:
        """What reads ahead here; None where processes read their shares."""
        job, workers = self._job, self._workers
        if workers.has_shares:
            return None
        runs = planned_runs(job, epoch, step * job.batches.global_batch_size)
        if workers.direct is None:
            lanes, meters = self._lanes.read, self._meters
            kept = workers.cache.has_run if workers.cache is not None else None
            return ReadAhead(job.dataset, runs, job.memory_bytes, lanes, meters, workers.columns, kept)
        return PagesAhead(job.dataset, runs, job.memory_bytes)

    def _run(self, epoch: int, step: int) -> None:
        try:
            for plan in plans(self._job, epoch, step):
                if not self._make(plan):
                    return
        except BaseException as err:
            self._fail(err if isinstance(err, HeadraceError) else unexpected(err))

    def _make(self, plan: Plan) -> bool:
        """Deal out one batch's rows, each chunk as soon as its bytes are there; False if stopped meanwhile."""
        slot = None if self._stopped else self._free_slot()
        if slot is None:
            return False
        try:
            picked = self._picked(plan)
            has_columns = picked is not None or self._workers.has_shares or self._workers.direct is not None
            make = ColumnBatch if has_columns else Batch
            batch = make(slot, len(plan.real), plan.real if plan.has_repeats else None, self._specs)
        except BaseException:
            self._slots.release(slot.number)
            raise
        pending = _Pending(plan, batch)
        with self._changed:
            self._pending.append(pending)
        done = partial(self._done, pending)
        if isinstance(batch, ColumnBatch) and picked is not None:
            self._workers.submit(FromRuns(batch, plan.epoch, int(plan.positions[0]), picked, done))
            return True
        if isinstance(batch, ColumnBatch) and self._workers.has_shares:
            self._deal_shares(plan, batch, done)
            return True
        return self._deal_rows(plan, batch, done)

    def _free_slot(self) -> Slot | None:
        """A slot, when there is one; None if stopped meanwhile."""
        began = time.perf_counter()
        slot = self._slots.acquire(lambda: self._stopped)
        with self._changed:
            if not self._pending:
                self._workers.idle(time.perf_counter() - max(began, self._emptied))
        return slot

    def _deal_rows(self, plan: Plan, batch: Batch, done: Callable[[bool], None]) -> bool:
        chunk_rows = _rows_per_chunk(batch.num_rows, self._workers)
        for first in range(0, batch.num_rows, chunk_rows):
            last = min(first + chunk_rows, batch.num_rows)
            if isinstance(batch, ColumnBatch):
                self._workers.submit(_rows(plan, batch, first, last, done))
                continue
            assert isinstance(self._ahead, ReadAhead)  # what is not read directly has been read ahead
            sources = self._sources_or_error(plan, first, last, self._ahead)
            if isinstance(sources, HeadraceError):
                done(batch.fail(range(first, batch.num_rows), sources))
                return False
            self._workers.submit(Task(batch, sources, done))
        return True

    def _deal_shares(self, plan: Plan, batch: ColumnBatch, done: Callable[[bool], None]) -> None:
        job, places = self._job, plan.places
        uses_cache = self._workers.cache is not None and self._workers.cache.is_on
        shares = shares_of(job, plan)
        for share in range(job.processes):
            rows = np.flatnonzero(shares == share)
            if len(rows):
                order = ShareOrder(
                    *(self._generation, plan.epoch, plan.step * job.batches.global_batch_size, rows),
                    *(plan.positions[rows], places.piece[rows], places.sample[rows], places.run[rows]),
                    *(plan.real[rows], plan.stop, batch.places, {}),
                    uses_cache=uses_cache,
                )
                self._workers.submit(ShareRows(batch, share, order, self._reading, done))

    def _picked(self, plan: Plan) -> Picked | None:
        """Where the batch's rows lie in runs' columns; None unless all of their runs have some."""
        if self._workers.columns is None or not isinstance(self._ahead, ReadAhead) or plan.has_repeats:
            return None
        ids, which = np.unique(plan.places.run, return_inverse=True)
        runs = []
        for number in ids.tolist():
            run = self._ahead.get((plan.epoch, number), plan.stop)
            if run is None or run.columns is None:
                return None
            runs.append(run.columns)
        return Picked.of(runs, which, plan.places.sample)

    def _sources_or_error(self, plan: Plan, first: int, last: int, reader: ReadAhead) -> list[Source] | HeadraceError:
        try:
            return self._sources(plan, first, last, reader) or LoaderError("the loader was stopped")
        except BaseException as err:
            return err if isinstance(err, HeadraceError) else unexpected(err)

    def _sources(self, plan: Plan, first: int, last: int, reader: ReadAhead) -> list[Source] | None:
        """Where the raw samples of some rows lie, when they are there; None if stopped meanwhile."""
        places, sources, cache = plan.places, [], self._workers.cache
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
            source = Source(row, plan.epoch, position, sample, run)
            if cache is not None:
                source.keep(cache, piece, reader)
            sources.append(source)
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
            if not self._pending:
                self._emptied = time.perf_counter()

    def _hand_over(self, pending: _Pending) -> None:
        if self._stopped:
            self._slots.release(pending.batch.slot.number)
            return
        delivery = self._delivery(pending)
        if delivery.error is not None:
            self._stopped = True
            self._slots.wake()
        self._deliver(delivery, pending.batch.slot)
        if self._ahead is not None:
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
        if (cache := self._workers.cache) is not None:
            cache.count(plan.epoch * job.batches.num_samples + plan.step * job.batches.global_batch_size, batch.came)
        ends_epoch = plan.stop % job.batches.num_samples == 0
        if ends_epoch or time.monotonic() - self._meters_sent > METERS_EVERY_SEC:
            delivery.decoded = cache.read() if cache is not None else None
            delivery.stages = {stage: self._meters[stage].read() for stage in STAGES}
            delivery.num_threads, delivery.decisions = self._workers.num_kept, self._workers.take_decisions()
            delivery.num_readers = self._num_reading()
            self._meters_sent = time.monotonic()
        return delivery

    def _num_reading(self) -> int:
        if isinstance(self._ahead, ReadAhead):
            return self._ahead.num_reading
        return sum(self._reading.values()) if self._workers.has_shares else self._workers.num_kept

    def _fail(self, error: HeadraceError) -> None:
        """Deliver an error that is no batch's, after the batches before it."""
        with self._changed:
            while self._pending and not self._stopped:
                self._changed.wait()
            if not self._stopped:
                self._stopped = True
                self._deliver(Delivery(self._generation, error=error), None)


def _rows(plan: Plan, batch: ColumnBatch, first: int, last: int, done: Callable[[bool], None]) -> Rows:
    places, part = plan.places, slice(first, last)
    columns = (plan.positions[part], places.piece[part], places.sample[part])
    return Rows(batch, Wanted(plan.epoch, np.arange(first, last), *columns), done)


def _rows_per_chunk(num_rows: int, workers: Workers) -> int:
    if workers.direct is not None:  # they take equally long, and each chunk has its price
        return max(1, min(MAX_READ_ROWS, -(-num_rows // (2 * workers.num_threads))))
    return max(1, min(MAX_CHUNK_ROWS, -(-num_rows // (4 * workers.num_threads))))
