"""A worker process of the loader process, used by one of its threads; one that ends or hangs is replaced.

It is asked ahead: while it works for one order the next is on its way, so that it never waits for its loader process.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import cloudpickle

from headrace.load.batch import Batch
from headrace.load.healing import Cases
from headrace.load.job import Job
from headrace.load.marks import Lane, Where
from headrace.load.process import Process, ProcessLostError
from headrace.load.tasks import Task as RowsTask
from headrace.load.worker_process import Task

ORDERS_AHEAD = 2


class Asked(Protocol):
    """Something that a process is asked to do with a batch."""

    @property
    def batch(self) -> Batch:
        """The batch."""

    @property
    def where(self) -> Where:
        """Everything before this sample is past when the answer has come."""

    @property
    def num_rows(self) -> int:
        """How many samples."""

    def order(self, condemned: Mapping[Where, str]) -> Any:
        """What the process is sent, leaving out samples over which processes ended; None: nothing is left to do."""

    def finish(self, answer: Any) -> RowsTask | None:
        """Take the answer, None to no order. Returns what turns out to be left to do."""

    def fail(self, err: BaseException) -> None:
        """There will be no answer."""


class Helper:
    """Has a process answer orders, each about a batch's slot. Not thread-safe."""

    def __init__(self, task: Task, job: Job, lane: Lane) -> None:
        """`task` travels to the process and answers there.

        `lane` is the thread's: it shows that somebody looks after the process, which marks its own page.
        """
        self._task, self._lane = task, lane
        self._hang_timeout_sec = job.hang_timeout_sec
        self._cases = Cases("worker", job.max_restarts)
        self._process: Process | None = None
        self._known: set[int] = set()
        """Slots that the process has."""
        self.asked: deque[Asked] = deque()
        """What it has not answered."""

    @property
    def lane(self) -> Lane:
        """The thread's own."""
        return self._lane

    @property
    def is_full(self) -> bool:
        """Whether it has been asked as much ahead as helps."""
        return len(self.asked) >= ORDERS_AHEAD

    def begin(self) -> None:
        """Start the process ahead of the first order."""
        with contextlib.suppress(ProcessLostError):  # the first order has another one started, and counts
            self._start()

    def send(self, asked: Asked) -> None:
        """Ask. Raises LoaderError where the process is not to be replaced once more."""
        self.asked.append(asked)
        try:
            self._send(asked)
        except ProcessLostError as lost:
            self._recover(lost)

    def receive(self) -> tuple[Asked, Any]:
        """The answer to what was asked first, None to no order. Errors as for `send`."""
        first = self.asked[0]
        answer = None
        while first.order(self._cases.condemned) is not None:
            assert self._process is not None  # it was asked
            try:
                answer = self._process.receive()[0]
                break
            except ProcessLostError as lost:
                self._recover(lost)
        self._lane.clear()
        self._cases.went_on(*first.where)
        return self.asked.popleft(), answer

    def give_up(self, err: BaseException) -> None:
        """What it was asked gets no answer: neither the process nor another will be listened to for it."""
        self._end()
        while self.asked:
            self.asked.popleft().fail(err)

    def _send(self, asked: Asked) -> None:
        order = asked.order(self._cases.condemned)
        if order is None:
            return
        process, slot = self._process or self._start(), asked.batch.slot
        process.send((order, slot.number), () if slot.number in self._known else (slot.fd,))
        self._known.add(slot.number)

    def _recover(self, lost: ProcessLostError) -> None:
        """Have a new process do all that was asked."""
        while True:
            self._end()
            self._cases.died(lost)
            self.asked[0].batch.lost.append(lost)
            try:
                for asked in self.asked:
                    self._send(asked)
                return
            except ProcessLostError as again:
                lost = again

    def _end(self) -> None:
        process, self._process = self._process, None
        self._known.clear()
        if process is not None:
            process.end()

    def _start(self) -> Process:
        process = Process(
            "headrace.load.worker_process", self._task.num_lanes, self._hang_timeout_sec, meanwhile=self._lane.clear
        )
        self._process = process
        process.send_bytes(cloudpickle.dumps(self._task))
        return process
