"""Who transforms samples: threads of the loader process, or worker processes where functions hold the lock.

Both take the same tasks, a chunk of rows each, from one queue. A worker process gets the raw bytes by its socket and
writes tensor fields straight into the batch's slot, which it maps as well; only list fields travel back.
"""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import cloudpickle

from headrace.errors import DamagedError, HeadraceError, LoaderError
from headrace.load.batch import Batch
from headrace.load.channel import Channel
from headrace.load.launch import exit_reason, start_interpreter
from headrace.load.reader import LoadedRun
from headrace.load.rows import Chain, Made, Row, make_rows
from headrace.telemetry import Meter

NUM_TRIES = 2


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


class Workers:
    """Takes tasks off a queue with `num` threads; each transforms by itself, or has a process do it."""

    def __init__(self, chain: Chain, num: int, processes: bool, meter: Meter) -> None:
        self._chain = chain
        self._meter = meter
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        makers = [_Remote(chain).make if processes else _local(chain) for _ in range(num)]
        self._threads = [
            threading.Thread(target=self._work, args=(make,), name="transform", daemon=True) for make in makers
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        """Have a task done by whichever worker is free."""
        self._tasks.put(task)

    def _work(self, make: Callable[[Batch, list[Row]], list[Made]]) -> None:
        while True:
            waiting = time.perf_counter()
            task = self._tasks.get()
            if task is None:
                return
            began = time.perf_counter()
            task.done(self._do(task, make))
            ended = time.perf_counter()
            self._meter.add(items=len(task.sources), busy_sec=ended - began, wait_sec=began - waiting)

    def _do(self, task: Task, make: Callable[[Batch, list[Row]], list[Made]]) -> bool:
        numbers = [source.row for source in task.sources]
        try:
            rows, lost = raw_rows(task.sources)
            made = lost | dict(zip([row.number for row in rows], make(task.batch, rows), strict=True))
            return task.batch.add(numbers, [made[number] for number in numbers], self._chain.keep_samples)
        except HeadraceError as err:
            return task.batch.fail(numbers, err)
        except BaseException as err:  # whatever it was, the batch must not wait for its rows for ever
            return task.batch.fail(numbers, LoaderError(f"the loader process failed: {type(err).__name__}: {err}"))


def raw_rows(sources: list[Source]) -> tuple[list[Row], dict[int, Made]]:
    """The rows' raw samples, and what there is instead for those that are damaged."""
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
            rows.append(Row(source.row, source.epoch, source.position, sample))
    return rows, lost


def _lost(source: Source, reason: str | None = None) -> Made:
    run = source.run
    if run.index is None or run.opened is None:
        return Made(f"{run.shard_name}:{source.number}", None, run.error)
    key, reason = run.index.key(source.number), reason or run.opened.damage[source.number]
    return Made(key, None, DamagedError(f"sample {key!r} in {run.shard_name}: {reason}"))


def _local(chain: Chain) -> Callable[[Batch, list[Row]], list[Made]]:
    return lambda batch, rows: make_rows(chain, rows, batch.arrays)


class _Remote:
    """A worker process, used by one thread of the loader process."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def make(self, batch: Batch, rows: list[Row]) -> list[Made]:
        """Have the process transform these rows; one that ended is replaced once. Raises LoaderError after that."""
        reasons = []
        for _ in range(NUM_TRIES):
            try:
                channel = self._channel or self._start()
                channel.send((rows, batch.places, batch.slot.size), fds=(batch.slot.fd,))
                made: list[Made] = channel.receive()[0]
                return made
            except (EOFError, BrokenPipeError, ConnectionResetError):
                reasons.append(self._end())
        raise LoaderError(
            f"a worker process ended {NUM_TRIES} times ({', then '.join(reasons)}) over the same {len(rows)} samples, "
            f"{rows[0].sample['__key__']!r} the first: look at what the function does with them"
        )

    def _end(self) -> str:
        """Let go of a process that has ended, or whose channel has; how it ended."""
        assert self._process is not None
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        return exit_reason(self._process.wait())

    def _start(self) -> Channel:
        self._process, self._channel = start_interpreter("headrace.load.worker_process")
        self._channel.send_bytes(cloudpickle.dumps(self._chain))
        return self._channel
