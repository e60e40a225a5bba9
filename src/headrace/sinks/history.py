"""What sinks that draw numbers over steps have in common: events become points, which are handed over in batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from headrace.sinks.points import Point, Points
from headrace.sinks.sink import Event, Memory


class History(ABC):
    """An `Output` that is given points; a subclass says how they are delivered."""

    def __init__(self, where: str, every_sec: float, memory: Memory) -> None:
        self.where = where
        self.memory = memory
        self._points = Points(every_sec)
        self._ready: list[Point] = []

    @property
    def held(self) -> int:
        """Events since the first step that waits for others to become one point with."""
        return self._points.held

    def take(self, event: Event) -> None:
        """The next event of the run."""
        self._ready += self._points.take(event)
        if event["event"] == "start":
            self.flush()
            self.started(event)

    def flush(self) -> None:
        """Deliver what is ready."""
        ready, self._ready = self._ready, []
        if ready:
            self.deliver(ready)

    def close(self, outcome: str | None) -> None:
        """Deliver what is held too, and end."""
        self._ready += self._points.rest()
        self.flush()
        self.end(outcome)

    def abandon(self) -> None:
        """End, and deliver nothing."""
        self.free()

    @abstractmethod
    def started(self, event: Event) -> None:
        """An attempt at the run begins, from `event["step"]` on."""

    @abstractmethod
    def deliver(self, points: Sequence[Point]) -> None:
        """Hand over points, one at least, of growing steps but for those that a restart does again."""

    @abstractmethod
    def end(self, outcome: str | None) -> None:
        """Nothing more comes."""

    @abstractmethod
    def free(self) -> None:
        """Let go of what is open, where something failed."""
