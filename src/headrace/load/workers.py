"""Who transforms samples: threads of the loader process, or worker processes where functions hold the lock.

Both take the same tasks, a chunk of rows each, from one queue. A worker process gets the raw bytes by its socket and
writes tensor fields straight into the batch's slot, which it maps as well; only list fields travel back.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import cloudpickle

from headrace.errors import DamagedError, HeadraceError
from headrace.load.batch import Batch
from headrace.load.direct import DirectReader, Rows
from headrace.load.healing import Cases
from headrace.load.job import Job, unexpected
from headrace.load.marks import PROBED, Lane, Where
from headrace.load.process import Process, ProcessLostError
from headrace.load.reader import LoadedRun
from headrace.load.rows import Chain, Made, Row, condemned_row, damaged, make_rows
from headrace.load.tabled import Columns, Part, TabledBatch
from headrace.telemetry import Meter


@dataclass(slots=True)
class Source:
    """Where the raw sample of one row lies."""

    row: int
    epoch: int
    position: int
    number: int
    """Number of the sample in its shard."""
    run: LoadedRun


@dataclass(slots=True)
class Task:
    """Some rows of a batch, and whom to tell when they are done: `done(True)` after the batch's last."""

    batch: Batch
    sources: list[Source]
    done: Callable[[bool], None]

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return len(self.sources)


@dataclass(slots=True)
class Parts:
    """A whole batch out of tables, and whom to tell when it is done."""

    batch: TabledBatch
    parts: list[Part]
    done: Callable[[bool], None]

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return self.batch.num_rows


class Workers:
    """Takes tasks off a queue with some threads; each transforms by itself, or has a process do it."""

    def __init__(
        self,
        chain: Chain,
        job: Job,
        lanes: Sequence[Lane],
        meters: Mapping[str, Meter],
        direct: DirectReader | None,
        columns: Columns | None,
    ) -> None:
        """As many threads as there are lanes for their marks; `job` says whether each has a process.

        With `direct`, tasks are `Rows` that are read straight into batches; with `columns`, some may be `Parts`.
        """
        self._chain = chain
        self._condemned = job.condemned
        self._meters = meters
        self._direct = direct
        self.columns = columns
        self._tasks: queue.SimpleQueue[Task | Rows | Parts | None] = queue.SimpleQueue()
        self.caution = Caution(job.suspects)
        makers = [
            _Remote(chain, job, lane).make if job.processes > 1 else _local(chain, self.caution, lane) for lane in lanes
        ]
        self._threads = [
            threading.Thread(target=self._work, args=made, name="transform", daemon=True)
            for made in zip(makers, lanes, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def direct(self) -> DirectReader | None:
        """What reads samples straight into batches, if they are."""
        return self._direct

    def submit(self, task: Task | Rows | Parts) -> None:
        """Have a task done by whichever worker is free."""
        self._tasks.put(task)

    def _work(self, make: Callable[[Batch, list[Row]], list[Made]], lane: Lane) -> None:
        while True:
            waiting = time.perf_counter()
            task = self._tasks.get()
            if task is None:
                return
            began = time.perf_counter()
            if isinstance(task, Rows):
                assert self._direct is not None  # or there were no such tasks
                task.done(self._direct.read(task, lane))
                self._meters["read"].add(wait_sec=began - waiting)
                continue
            task.done(self._fill(task, lane) if isinstance(task, Parts) else self._do(task, make))
            ended = time.perf_counter()
            self._meters["transform"].add(items=task.num_rows, busy_sec=ended - began, wait_sec=began - waiting)

    def _fill(self, task: Parts, lane: Lane) -> bool:
        lane.mark(task.batch.epoch, task.batch.position)
        task.batch.fill(task.parts)
        lane.clear()
        return True

    def _do(self, task: Task, make: Callable[[Batch, list[Row]], list[Made]]) -> bool:
        numbers = [source.row for source in task.sources]
        try:
            rows, lost = raw_rows(task.sources, self._condemned)
            made = lost | dict(zip([row.number for row in rows], make(task.batch, rows), strict=True))
            return task.batch.add(numbers, [made[number] for number in numbers], self._chain.keep_samples)
        except BaseException as err:  # whatever it was, the batch must not wait for its rows for ever
            return task.batch.fail(numbers, err if isinstance(err, HeadraceError) else unexpected(err))


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


def raw_rows(sources: Sequence[Source], condemned: Mapping[Where, str]) -> tuple[list[Row], dict[int, Made]]:
    """The rows' raw samples, and what there is instead for those that are damaged or condemned."""
    rows: list[Row] = []
    lost: dict[int, Made] = {}
    for source in sources:
        run = source.run
        if run.opened is None or source.number in run.opened.damage:
            lost[source.row] = _lost(source)
        else:
            try:
                sample = run.opened.sample(source.number)
            except DamagedError as err:
                lost[source.row] = _lost(source, str(err))
                continue
            row = Row(source.row, source.epoch, source.position, sample)
            if row.where in condemned:
                lost[source.row] = condemned_row(sample["__key__"], condemned[row.where])
            else:
                rows.append(row)
    return rows, lost


def _lost(source: Source, reason: str | None = None) -> Made:
    run = source.run
    if run.index is None or run.opened is None:
        return Made(f"{run.shard_name}:{source.number}", None, run.error)
    return damaged(run.index.key(source.number), run.shard_name, reason or run.opened.damage[source.number])


def _local(chain: Chain, caution: Caution, lane: Lane) -> Callable[[Batch, list[Row]], list[Made]]:
    return lambda batch, rows: caution.make(rows, lambda: make_rows(chain, rows, batch.arrays, lane))


class _Remote:
    """A worker process, used by one thread of the loader process."""

    def __init__(self, chain: Chain, job: Job, lane: Lane) -> None:
        """`lane` is the thread's: it shows that somebody looks after the process, which marks its own page."""
        self._chain = chain
        self._max_restarts = job.max_restarts
        self._hang_timeout_sec = job.hang_timeout_sec
        self._lane = lane
        self._process: Process | None = None

    def make(self, batch: Batch, rows: list[Row]) -> list[Made]:
        """Have the process transform these rows; one that ends or hangs is replaced, and goes on with them.

        Raises LoaderError where it is not to be replaced once more.
        """
        cases = Cases("worker", self._max_restarts)
        while True:
            left = [row for row in rows if row.where not in cases.condemned]
            try:
                made = dict(zip([row.number for row in left], self._ask(batch, left), strict=True))
            except ProcessLostError as lost:
                self._end()
                cases.died(lost)
                batch.lost.append(lost)
                continue
            self._lane.clear()
            return [
                made.get(row.number) or condemned_row(row.sample["__key__"], cases.condemned[row.where]) for row in rows
            ]

    def _ask(self, batch: Batch, rows: list[Row]) -> list[Made]:
        if not rows:
            return []
        process = self._process or self._start()
        process.send((rows, batch.places, batch.slot.size), (batch.slot.fd,))
        made: list[Made] = process.receive()[0]
        return made

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def _start(self) -> Process:
        process = Process("headrace.load.worker_process", 1, self._hang_timeout_sec, meanwhile=self._lane.clear)
        self._process = process
        process.send_bytes(cloudpickle.dumps(self._chain))
        return process
