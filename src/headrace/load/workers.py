"""Who transforms samples: threads of the loader process, or worker processes where functions hold the lock.

Both take the same tasks, a chunk of rows each, from one queue. A worker process gets the raw bytes by its socket and
writes tensor fields straight into the batch's slot, which it maps as well; only list fields travel back. Where nothing
is done to samples it reads them itself.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from headrace.errors import HeadraceError
from headrace.load.decoded import CacheControl
from headrace.load.direct import DirectReader, Rows
from headrace.load.helper import Asked, Helper
from headrace.load.job import Job, unexpected
from headrace.load.marks import PROBED, Doing, Lane, Where
from headrace.load.remote import AskedRows, AskedShare, ShareRows
from headrace.load.row_task import RowTask
from headrace.load.rows import Chain, Made, Row, make_rows
from headrace.load.share_task import ShareTask
from headrace.load.tabled import Columns, gather
from headrace.load.tasks import FromRuns, Task, make_all
from headrace.load.thread_tuner import ThreadTuner
from headrace.load.worker_process import Task as HelperTask
from headrace.telemetry import Meter

AnyTask: TypeAlias = Task | Rows | FromRuns | ShareRows
Tasks: TypeAlias = "queue.SimpleQueue[AnyTask | None]"


class Workers:
    """Takes tasks off a queue with some threads; each does them by itself, or has a process do it."""

    def __init__(
        self,
        chain: Chain,
        job: Job,
        lanes: Sequence[Lane],
        meters: Mapping[str, Meter],
        direct: DirectReader | None,
        columns: Columns | None,
        has_shares: bool,
        cache: CacheControl | None = None,
    ) -> None:
        """At most as many threads as there are lanes for their marks; `job` says whether each has a process.

        If the processes have shares of the rank's partitions, all tasks are `ShareRows`. Else, with `direct`, they are
        `Rows` that are read straight into batches; with `columns`, some may be `FromRuns`.
        """
        self._chain = chain
        self._condemned = job.condemned
        self._meters = meters
        self.direct = direct
        self.columns = columns
        self.has_shares = has_shares
        self.cache = cache
        """What of the decoded samples is kept; None where nothing ever is."""
        self.caution = Caution(job.suspects)
        self._tasks: list[Tasks] = [queue.SimpleQueue() for _ in (lanes if self.has_shares else lanes[:1])]
        self._lanes = lanes
        self._tuner = ThreadTuner(job.tuned) if job.tuned and job.processes == 1 else None
        self._changed = threading.Condition()
        self._num_started = 0
        if job.processes == 1:
            self._start_threads()
            return
        for number, lane in enumerate(lanes):
            helper = Helper(self._helper_task(job, number), job, lane)
            _start(partial(self._ask, helper, self._tasks[number % len(self._tasks)]))

    @property
    def num_threads(self) -> int:
        """How many threads transform, or look after a process, now."""
        return self._tuner.active if self._tuner else len(self._lanes)

    @property
    def num_kept(self) -> int:
        """The same, but for a number that is being tried."""
        return self._tuner.kept if self._tuner else len(self._lanes)

    def idle(self, sec: float) -> None:
        """For so long there was nothing to do, since the trainer had not taken what was made."""
        if self._tuner:
            with self._changed:
                self._tuner.idle(sec)

    def take_decisions(self) -> list[str]:
        """What was changed about the number of threads since this was asked last, in words."""
        if self._tuner is None:
            return []
        with self._changed:
            taken, self._tuner.decisions = self._tuner.decisions, []
        return taken

    def _start_threads(self) -> None:
        """Those that are to work now."""
        for number in range(self._num_started, self.num_threads):
            _start(partial(self._work, number, self._lanes[number], self._tasks[0]))
            self._num_started += 1

    def _helper_task(self, job: Job, number: int) -> HelperTask:
        if self.has_shares:
            direct = self.direct is not None
            return ShareTask(job, self._chain.specs or {}, number, self.columns, direct, self._chain.cached)
        return RowTask(self._chain)

    def submit(self, task: AnyTask | None) -> None:
        """Have a task done by whichever worker is free, or has the share; None ends one that is a thread."""
        self._tasks[task.share if isinstance(task, ShareRows) else 0].put(task)

    def _work(self, number: int, lane: Lane, tasks: Tasks) -> None:
        """A thread that does tasks by itself."""
        while True:
            if number >= self.num_threads:
                with self._changed:
                    self._changed.wait_for(lambda: number < self.num_threads)
            waiting = time.perf_counter()
            task = tasks.get()
            if task is None:
                return
            began = time.perf_counter()
            if isinstance(task, Rows):
                self._read(task, lane)
                self._meters["read"].add(wait_sec=began - waiting)
                self._count(len(task.wanted.rows), time.perf_counter() - began)
                continue
            if isinstance(task, FromRuns):
                self._gather(task, lane)
            else:
                assert isinstance(task, Task)  # shares are processes'
                self._make(task, lane)
            ended = time.perf_counter()
            self._meters["transform"].add(items=task.num_rows, busy_sec=ended - began, wait_sec=began - waiting)
            self._count(task.num_rows, ended - began)

    def _count(self, num_rows: int, busy_sec: float) -> None:
        """A task is done, which may say how many threads are to work from here on."""
        if self._tuner is None:
            return
        with self._changed:
            before = self._tuner.active
            self._tuner.made(num_rows, busy_sec)
            if self._tuner.active != before:
                self._start_threads()
                self._changed.notify_all()

    def _read(self, task: Rows, lane: Lane) -> None:
        assert self.direct is not None  # or there were no such tasks
        lane.mark(task.wanted.epoch, int(task.wanted.positions[0]), Doing.READ)
        try:
            read = self.direct.read(task.wanted, task.batch.slot)
        except BaseException as err:  # whatever it was, the batch must not wait for its rows for ever
            lane.clear()
            task.fail(err)
            return
        lane.clear()
        task.finish(read)

    def _gather(self, task: FromRuns, lane: Lane) -> None:
        assert self.columns is not None  # or there were no such tasks
        batch = task.batch
        lane.mark(task.epoch, task.position)
        try:
            rows = gather(self.columns, task.picked, batch.slot, batch.arrays, slice(None))
            is_last = batch.add_columns(slice(None), rows)
        except BaseException as err:  # whatever it was, the batch must not wait for its rows for ever
            error = err if isinstance(err, HeadraceError) else unexpected(err)
            is_last = batch.fail(range(batch.num_rows), error)
        lane.clear()
        task.done(is_last)

    def _make(self, task: Task, lane: Lane) -> None:
        def make(rows: list[Row]) -> list[Made]:
            return self.caution.make(rows, lambda: make_rows(self._chain, rows, task.batch.arrays, lane))

        try:
            made = make_all(task.sources, self._condemned, make, lane)
            task.finish(made, self._chain.keep_samples)
        except BaseException as err:  # whatever it was, the batch must not wait for its rows for ever
            task.fail(err)

    def _ask(self, helper: Helper, tasks: Tasks) -> None:
        """A thread that has a process do tasks, and asks ahead."""
        helper.begin()
        answered = 0.0
        while True:
            waiting = time.perf_counter()
            task = _next(tasks, wait=not helper.asked)
            began = time.perf_counter()
            if not helper.asked:
                self._meters["transform"].add(wait_sec=began - waiting)
                answered = began
            if task is not None:
                self._send(helper, task)
            if helper.asked and (task is None or helper.is_full):
                answered = self._receive(helper, answered)

    def _send(self, helper: Helper, task: Task | ShareRows) -> None:
        try:
            asked = self._asked(task, helper.lane)
        except BaseException as err:  # whatever it was, the batch must not wait for its rows for ever
            task.fail(err)
            return
        try:
            helper.send(asked)
        except BaseException as err:
            helper.give_up(err)

    def _asked(self, task: Task | ShareRows, lane: Lane) -> Asked:
        if isinstance(task, ShareRows):
            return AskedShare(task, self._condemned, self._meters)
        return AskedRows(task, self._condemned, self._chain.keep_samples, lane)

    def _receive(self, helper: Helper, answered: float) -> float:
        """Take an answer; `answered` is when that before came, or the process was asked. Returns when this one came."""
        try:
            asked, answer = helper.receive()
        except BaseException as err:
            helper.give_up(err)
            return time.perf_counter()
        now = time.perf_counter()
        rest = None
        try:
            rest = asked.finish(answer)
        except BaseException as err:
            asked.fail(err)
        if rest is not None:
            self._send(helper, rest)
        if self.direct is None:  # reads are counted with what they say of themselves
            self._meters["transform"].add(items=asked.num_rows, busy_sec=now - answered)
        return now


def _start(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="transform", daemon=True).start()


def _next(tasks: Tasks, wait: bool) -> Task | ShareRows | None:
    """The next task; None if there is none yet."""
    try:
        task = tasks.get(block=wait)
    except queue.Empty:
        return None
    assert not isinstance(task, FromRuns | Rows)  # processes have shares instead
    return task


class Caution:
    """Has threads transform one sample at a time, for as long as one is ahead that a process may have died of."""

    def __init__(self, suspects: Collection[Where]) -> None:
        self._ahead = {where for where in suspects if where[0] != PROBED}
        self._lock = threading.Lock()

    def forget_before(self, where: Where) -> None:
        """Nothing before this place comes any more."""
        with self._lock:
            self._ahead = {one for one in self._ahead if one >= where}

    def make(self, rows: Sequence[Row], make: Callable[[], list[Made]]) -> list[Made]:
        """What `make` makes of the rows."""
        if not self._ahead:
            return make()
        with self._lock:
            made = make()
            self._ahead -= {row.where for row in rows}
            return made
