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
    def holds(self) -> bool:
        """Whether steps wait for others to become one point with."""
        return self._points.holds

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

    @abstractmethod
    def started(self, event: Event) -> None:
        """An attempt at the run begins, from `event["step"]` on."""

    @abstractmethod
    def deliver(self, points: Sequence[Point]) -> None:
        """Hand over points, one at least, of growing steps but for those that a restart does again."""

    @abstractmethod
    def end(self, outcome: str | None) -> None:
        """Nothing more comes."""
