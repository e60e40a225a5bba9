"""The loader process: a fresh interpreter that runs a `Job` for one trainer, and ends when that one does."""

from __future__ import annotations

import gc
import os
import signal
import socket

from headrace.errors import HeadraceError
from headrace.load.channel import Channel, Frame, Kind, receive_frame
from headrace.load.decoded import CacheControl, CachedSteps
from headrace.load.direct import DirectReader, reads_directly
from headrace.load.fields import Specs, resolve_specs
from headrace.load.job import STAGES, Delivery, Job, Lanes, unexpected
from headrace.load.launch import end_now, watch_parent
from headrace.load.marks import Marks
from headrace.load.pipeline import Pipeline
from headrace.load.plan import can_share
from headrace.load.rows import Chain
from headrace.load.slots import Slot, SlotPool
from headrace.load.tabled import Columns, takes_tables
from headrace.load.workers import Workers
from headrace.telemetry import Meter
from headrace.transform import prepare_worker, sample_rng


def main(parent: int, channel_fd: int, marks_fd: int, orders_fd: int) -> None:
    """The process's entry: a job comes by the channel, then orders by the pipe until the trainer wants no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for fd in (channel_fd, marks_fd):
        os.set_inheritable(fd, False)
    marks = Marks(marks_fd)
    watch_parent(parent, orders_fd, marks.beat)
    marks.catch_stacks()
    prepare_worker()
    channel = Channel(socket.socket(fileno=channel_fd))
    try:
        feed = Feed(channel.receive()[0], channel, marks)
        gc.collect()
        gc.freeze()  # a collection would walk the libraries' objects in the middle of a batch
        while (frame := receive_frame(orders_fd)).kind is not Kind.END:
            feed.obey(frame)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the trainer is gone
    end_now()


class Feed:
    """The loader process's slots, workers and meters, and the pipeline of the present generation."""

    def __init__(self, job: Job, channel: Channel, marks: Marks) -> None:
        self._job = job
        self._channel = channel
        self._lanes = Lanes.of(job, marks.lanes)
        self._slots = SlotPool(job.num_slots, is_shared=job.processes > 1)
        self._sent: set[int] = set()
        self._meters = {stage: Meter() for stage in STAGES}
        self._specs: Specs | None = None
        self._workers: Workers | None = None
        self._pipeline: Pipeline | None = None

    def obey(self, frame: Frame) -> None:
        """Carry out one order."""
        if frame.kind is Kind.RELEASE:
            self._slots.release(frame.number)
            return
        self._lanes.main.clear()  # it has started
        if self._pipeline is not None:
            self._pipeline.stop()
            self._pipeline = None
        try:
            self._pipeline = self._make_pipeline(frame)
        except BaseException as err:
            error = err if isinstance(err, HeadraceError) else unexpected(err)
            self._deliver(Delivery(frame.number, error=error), None)

    def _make_pipeline(self, frame: Frame) -> Pipeline:
        workers = self._workers or self._make_workers()
        if workers.direct is not None:
            workers.direct.forget()
        workers.caution.forget_before((frame.epoch, frame.step * self._job.batches.global_batch_size))
        return Pipeline(
            *(self._job, self._specs, workers, self._slots, self._meters, self._deliver, self._lanes),
            generation=frame.number,
            epoch=frame.epoch,
            step=frame.step,
        )

    def _make_workers(self) -> Workers:
        job, lanes = self._job, self._lanes
        if job.collate is None:
            self._specs = resolve_specs(
                job.dataset, job.ops, lambda at: sample_rng(job.order.seed, 0, at), lanes.main, job.condemned
            )
        is_direct = reads_directly(job, self._specs)
        has_shares = job.collate is None and self._specs is not None and can_share(job)
        takes_columns = not is_direct and takes_tables(job, self._specs) and (job.processes == 1 or has_shares)
        cached = self._cached_steps(takes_columns)
        columns = Columns(self._specs or {}, job.ops) if takes_columns and cached is None else None
        chain = Chain(job.ops, job.order.seed, self._specs, job.collate is not None, job.processes > 1, cached)
        direct = DirectReader(job.dataset, chain, self._meters) if is_direct else None
        cache = CacheControl(cached, job.dataset.pieces) if cached is not None else None
        self._workers = Workers(chain, job, lanes.transform, self._meters, direct, columns, has_shares, cache)
        return self._workers

    def _cached_steps(self, takes_columns: bool) -> CachedSteps | None:
        """The steps with a cache of decoded samples. Columns are not worth one, unless somebody asks for it."""
        job = self._job
        if job.decoded is None or (job.decoded.options.is_auto and takes_columns):
            return None
        return CachedSteps(job.decoded, job.ops, keeps_samples=job.collate is not None)

    def _deliver(self, delivery: Delivery, slot: Slot | None) -> None:
        """Send a batch to the trainer, with its slot's descriptor the first time."""
        fds: tuple[int, ...] = ()
        if slot is not None and slot.number not in self._sent:
            self._sent.add(slot.number)
            fds = (slot.fd,)
        try:
            self._channel.send(delivery, fds)
        except (BrokenPipeError, ConnectionResetError):
            end_now()  # the trainer is gone
