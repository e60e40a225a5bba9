"""How many threads transform: more of them, or fewer, are tried while the trainer waits, and kept where that pays.

Threads that wait, for a service or a disk, want to be more than the processors. Threads that take the interpreter's
lock from each other want to be fewer. Which it is depends on the functions, the data and the machine: it is tried, half
or twice as many at a time. A trial lies between two looks at what there was before and has to beat both, so that a
machine which changes its speed meanwhile proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

TIMES_CPUS = 4
"""At most so many threads a processor: what waits for more than 3/4 of its time is better asked for many at once, and
each thread takes its turn at the interpreter's lock."""

LOOK_SEC = 1.5
SETTLE_SEC = 0.25
"""After a change, before it counts: threads are amid what they began before."""
LEAST_TASKS = 8
"""Of each thread, in a look: where tasks are long, so are looks."""
MORE_PAYS_FROM = 1.05
FEWER_PAYS_FROM = 1.0
"""Fewer threads leave the processors to others, so that as much is enough."""
GIVE_UP_AFTER_SEC = 0.4
GIVE_UP_BELOW = 0.75
"""What gives so much less is not looked at any longer."""
IDLE_FROM = 0.1
"""Share of the time from which on the feed waits for the trainer, whose pace it has then, whatever threads do."""
BUSY_FROM = 0.75
"""Threads that have more time left than this need no others beside them."""
CPU_FROM = 0.95
"""Of its share of the processors: a feed that has used that up could only take more from others."""
REST_SEC = 30.0
MOST_REST_SEC = 480.0
"""After a trial that did not pay, before the same is tried again: the first time, and, doubled each time, at last."""


@dataclass(frozen=True, slots=True)
class ThreadLimits:
    """Between what the number of threads is tuned."""

    at_first: int
    most: int
    cpus: float
    """This process's share of the processors."""


class _Look(Enum):
    """What is being looked at."""

    BEFORE = auto()
    """What there is; a trial may follow."""
    TRIED = auto()
    AFTER = auto()
    """What there was before, once more."""


class ThreadTuner:
    """The number of threads. Not thread-safe: used under its workers' lock."""

    def __init__(
        self,
        limits: ThreadLimits,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.active = self.kept = limits.at_first
        """How many are to work now, and how many once a trial that is under way is over."""
        self.decisions: list[str] = []
        """What was changed, in words, until somebody takes it from here."""
        self._most, self._cpus = limits.most, limits.cpus
        self._clock, self._cpu_clock = clock, cpu_clock
        self._look = _Look.BEFORE
        self._tried = self.active
        self._rate_before = self._rate_tried = 0.0
        self._rest_sec: dict[int, float] = {}
        self._rest_until: dict[int, float] = {}
        """By number of threads."""
        self._settled_at = clock() + SETTLE_SEC
        self._begin()

    def idle(self, sec: float) -> None:
        """For so long there was nothing to do, since the trainer had not taken what was made."""
        self._idle_sec += sec

    def made(self, num_rows: int, busy_sec: float) -> None:
        """A thread has done a task."""
        now = self._clock()
        if now < self._settled_at:
            self._begin()
            return
        self._rows += num_rows
        self._tasks += 1
        self._busy_sec += busy_sec
        passed = now - self._since
        if passed >= LOOK_SEC and self._tasks >= LEAST_TASKS * self.active:
            self._judge(self._rows / passed, passed)
        elif self._is_hopeless(passed):
            self._take_back()

    def _is_hopeless(self, passed: float) -> bool:
        has_seen_enough = passed >= GIVE_UP_AFTER_SEC and self._tasks >= 2 * self.active
        return self._look is _Look.TRIED and has_seen_enough and self._rows < GIVE_UP_BELOW * self._rate_before * passed

    def _judge(self, rate: float, passed: float) -> None:
        """A look is over."""
        if self._look is _Look.BEFORE:
            tried = self._next_trial(passed) if self._idle_sec < IDLE_FROM * passed else None
            if tried is None:
                self._begin()
                return
            self._tried, self._rate_before = tried, rate
            self._go(_Look.TRIED, tried)
        elif self._look is _Look.TRIED:
            self._rate_tried = rate
            self._go(_Look.AFTER, self.kept)
        else:
            gain = self._rate_tried / max(self._rate_before, rate)
            if gain >= (MORE_PAYS_FROM if self._tried > self.kept else FEWER_PAYS_FROM):
                self._keep(gain)
            else:
                self._take_back()

    def _next_trial(self, passed: float) -> int | None:
        """How many threads to try; None to leave it as it is."""
        more, fewer = min(self._most, 2 * self.kept), self.kept // 2
        is_busy = self._busy_sec >= BUSY_FROM * self.kept * passed
        has_cpu = self._cpu_clock() - self._cpu_since < CPU_FROM * self._cpus * passed
        if is_busy and has_cpu and more > self.kept and self._is_rested(more):
            return more
        return fewer if fewer and self._is_rested(fewer) else None

    def _is_rested(self, threads: int) -> bool:
        return self._clock() >= self._rest_until.get(threads, 0.0)

    def _keep(self, gain: float) -> None:
        before, self.kept = self.kept, self._tried
        self.decisions.append(f"threads: {self.kept} instead of {before}, {gain:.2f} times the samples a second")
        self._rest_sec.pop(self.kept, None)
        self._rest(before)
        self._go(_Look.BEFORE, self.kept)

    def _take_back(self) -> None:
        self._rest(self._tried)
        self._go(_Look.BEFORE, self.kept)

    def _rest(self, threads: int) -> None:
        """Not to be tried for a while."""
        rest_sec = self._rest_sec.get(threads, REST_SEC)
        self._rest_sec[threads] = min(MOST_REST_SEC, 2 * rest_sec)
        self._rest_until[threads] = self._clock() + rest_sec

    def _go(self, look: _Look, active: int) -> None:
        self._look = look
        if active != self.active:
            self.active = active
            self._settled_at = self._clock() + SETTLE_SEC
        self._begin()

    def _begin(self) -> None:
        self._since, self._cpu_since = self._clock(), self._cpu_clock()
        self._rows = self._tasks = 0
        self._busy_sec = self._idle_sec = 0.0
