"""How many reads are under way at once: twice as many as long as somebody waits for bytes and doubling them pays.

A store answers after tens of milliseconds whatever is asked, so that requests in flight decide its rate, up to what
the network or the store gives. Where that lies nobody knows beforehand: it is tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_SEC = 0.5
WAITS_FROM = 0.1
"""Share of the time from which on the waiting for bytes counts."""
PAYS_FROM = 1.1
"""A doubling that gives less than this is taken back."""
REST_SEC = 30.0
"""After one that did not pay, before it is tried again: the network may have become another."""


class Pace:
    """Not thread-safe: used under its reader's lock."""

    def __init__(self, least: int, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins with `least`, and never has more than `most`."""
        self.active = least
        self._most = most
        self._clock = clock
        self._before: int | None = None
        """How many there were before the present trial; None: there is no trial."""
        self._rate_before = 0.0
        self._is_settling = False
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
            self._look(self._num_bytes / passed, self._waited_sec / passed)
            self._begin()

    def _look(self, rate: float, waits: float) -> None:
        if self._is_settling:
            self._is_settling = False
        elif self._before is not None:
            if rate < PAYS_FROM * self._rate_before:
                self.active, self._rest_until = self._before, self._clock() + REST_SEC
            self._before = None
        elif waits >= WAITS_FROM and not self._num_idle and self._clock() >= self._rest_until:
            self._before, self._rate_before = self.active, rate
            self.active = min(self._most, 2 * self.active)
            self._is_settling = True
            if self.active == self._before:
                self._before, self._is_settling = None, False

    def _begin(self) -> None:
        self._since = self._clock()
        self._num_bytes = self._num_idle = 0
        self._waited_sec = 0.0
