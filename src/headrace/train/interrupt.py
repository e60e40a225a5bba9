"""A request to stop, taken from SIGTERM and answered at the end of a step.

Schedulers send SIGTERM before they kill. The signal only sets a flag here; the flag travels with the sums that every
step has anyway, so that all ranks stop after the same step, whichever of them was told.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """While the block runs, SIGTERM sets `requested`. Outside the main thread signals cannot be taken: no effect."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None
        self._installed = False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._take)
            self._installed = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous)
        if self._timer is not None:
            self._timer.cancel()

    def after(self, sec: float) -> None:
        """Have it requested so many seconds after `begin`, unless the block has ended by then."""
        self._timer = threading.Timer(sec, self._take)
        self._timer.daemon = True

    def begin(self) -> None:
        """The first step, which starts everything up, is made."""
        if self._timer is not None:
            self._timer.start()

    def _take(self, number: int = 0, frame: FrameType | None = None) -> None:
        self.requested = True
