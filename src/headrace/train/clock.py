"""Where the time of a step went.

The loop calls `lap` whenever it turns from one kind of work to another, so that every moment belongs to exactly one
kind and the kinds add up to the whole. The kinds of a step: wait (for the next batch), copy (to the device), compute,
communication (that was not hidden behind compute), checkpoint and rest. Evaluation has its own event and is left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Split:
    """Seconds of one step by kind."""

    wait: float = 0.0
    copy: float = 0.0
    compute: float = 0.0
    communication: float = 0.0
    checkpoint: float = 0.0
    rest: float = 0.0

    def move(self, sec: float, source: str, target: str) -> None:
        """Count up to `sec` seconds of one kind as another, as far as there are so many."""
        sec = max(0.0, min(sec, getattr(self, source)))
        setattr(self, source, getattr(self, source) - sec)
        setattr(self, target, getattr(self, target) + sec)

    def fields(self) -> dict[str, float]:
        """The fields of a step event: `sec` is the sum of the others."""
        return {
            "sec": self.wait + self.copy + self.compute + self.communication + self.checkpoint + self.rest,
            "wait_sec": self.wait,
            "copy_sec": self.copy,
            "compute_sec": self.compute,
            "communication_sec": self.communication,
            "checkpoint_sec": self.checkpoint,
            "rest_sec": self.rest,
        }


class Clock:
    """Laps of the monotonic clock, added up in the split of the present step."""

    def __init__(self) -> None:
        self.split = Split()
        self._last = time.perf_counter()

    def lap(self, kind: str) -> float:
        """Count the time since the last lap as `kind`, and return it."""
        now = time.perf_counter()
        sec = now - self._last
        self._last = now
        setattr(self.split, kind, getattr(self.split, kind) + sec)
        return sec

    def skip(self) -> float:
        """Count the time since the last lap as no part of any step, and return it."""
        now = time.perf_counter()
        sec = now - self._last
        self._last = now
        return sec

    def next_step(self) -> Split:
        """The split of the step that ends now; a new one begins."""
        self.lap("rest")
        split, self.split = self.split, Split()
        return split
