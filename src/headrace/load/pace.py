"""How many reads are under way at once: twice as many as long as somebody waits for bytes and doubling them pays.

A store answers after tens of milliseconds whatever is asked, so that requests in flight decide its rate, up to what
the network, the store or the processors give. Where that lies nobody knows beforehand: it is tried. A trial lies
between two looks at what there was before and has to beat both, so that a feed which begins, or a network which
changes, proves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum, auto

LOOK_SEC = 0.5
WAITS_FROM = 0.1
"""Share of the time from which on the waiting for bytes counts."""
PAYS_FROM = 1.1
"""A doubling that gives less than this is taken back."""
REST_SEC = 30.0
"""After one that did not pay, before it is tried again: the network may have become another."""


class _Look(Enum):
    """What is being looked at."""

    BEFORE = auto()
    """What there is; a trial may follow."""
    TRIED = auto()
    AFTER = auto()
    """What there was before, once more."""


class Pace:
    """Not thread-safe: used under its reader's lock."""

    def __init__(self, least: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins with `least`, and never has more than `most`."""
        self.active = self._kept = least
        self._most = most
        self._clock = clock
        self._look = _Look.BEFORE
        self._rate_before = self._rate_tried = 0.0
        self._is_settling = False
        """Whether the present look does not count, since reads that began before the change come in it."""
        self._rest_until = 0.0
        self._since = clock()
        self._num_bytes = self._num_idle = 0
        self._waited_sec = 0.0

    def waited(self, sec: float) -> None:
        """Somebody waited for bytes."""
        self._waited_sec += sec

    def read(self, num_bytes: int, num_idle: int) -> None:
        """Some bytes came; so many of the active reads had nothing to read, or no room for it."""
        self._num_bytes += num_bytes
        self._num_idle = max(self._num_idle, num_idle)
        passed = self._clock() - self._since
        if passed >= LOOK_SEC:
            if self._is_settling:
                self._is_settling = False
            else:
                self._judge(self._num_bytes / passed, self._waited_sec / passed)
            self._begin()

    def _judge(self, rate: float, waits: float) -> None:
        """A look is over."""
        if self._look is _Look.BEFORE:
            more = min(self._most, 2 * self._kept)
            is_due = more > self._kept and self._clock() >= self._rest_until
            if is_due and waits >= WAITS_FROM and not self._num_idle:
                self._rate_before = rate
                self._go(_Look.TRIED, more)
        elif self._look is _Look.TRIED:
            self._rate_tried = rate
            if rate >= PAYS_FROM * self._rate_before:
                self._go(_Look.AFTER, self._kept)
            else:
                self._take_back()
        elif self._rate_tried >= PAYS_FROM * rate:
            self._kept = min(self._most, 2 * self._kept)
            self._go(_Look.BEFORE, self._kept)
        else:
            self._take_back()

    def _take_back(self) -> None:
        self._rest_until = self._clock() + REST_SEC
        self._go(_Look.BEFORE, self._kept)

    def _go(self, look: _Look, active: int) -> None:
        self._look, self._is_settling, self.active = look, active != self.active, active

    def _begin(self) -> None:
        self._since = self._clock()
        self._num_bytes = self._num_idle = 0
        self._waited_sec = 0.0
