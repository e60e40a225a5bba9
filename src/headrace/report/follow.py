"""A run while it goes on: what is new in its events, and what it is at now."""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from headrace.errors import StorageError
from headrace.report.runlog import Event, Run, run_of
from headrace.telemetry import FILE_NAME, Tail

_WINDOW_SEC = 30.0
_LEAST_STEPS, _MOST_STEPS = 20, 50_000
_FEEDS = 3
_POINTS = 240


class Follower:
    """Reads a run's events from where it was. The run may not have begun."""

    def __init__(self, run: str | Path) -> None:
        """`run`: its folder, or its file of events. Raises StorageError where neither is."""
        path = Path(run)
        if not path.exists():
            raise StorageError(f"no run at {path}: give the folder of a run, which holds {FILE_NAME}")
        self.path = path / FILE_NAME if path.is_dir() else path
        self._tail = Tail(self.path)

    def new_events(self) -> Iterator[Event]:
        """The events since the last call; a line that is not whole yet comes later."""
        return self._tail.new_events()

    def begins_anew(self) -> bool:
        """Whether the events were deleted, and what was read is of another history: they are read from the beginning
        then. Raises StorageError."""
        if not self._tail.is_beyond_end():
            return False
        self._tail = Tail(self.path)
        return True


class Trend:
    """A value over all steps in a few points: where there would be more, neighbours become their mean."""

    def __init__(self) -> None:
        self.points: list[float] = []
        self._each = 1
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        """The next step's."""
        self._sum += value
        self._count += 1
        if self._count < self._each:
            return
        self.points.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.points) == _POINTS:
            self.points = [(one + other) / 2 for one, other in zip(self.points[::2], self.points[1::2], strict=True)]
            self._each *= 2


class Present:
    """What a run is at: of its steps the latest, by which it is judged, and of all else the newest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.forget()

    def forget(self) -> None:
        """Nothing has been taken yet."""
        self.loss = Trend()
        self.start: Event | None = None
        self.step: Event | None = None
        self.evaluation: Event | None = None
        self.checkpoint: Event | None = None
        self.guards: deque[Event] = deque(maxlen=3)
        self.loader: Event | None = None
        """What another library's loader has given, by a Monitor."""
        self.alarm: Event | None = None
        self.last: Event | None = None
        """The event that ended the attempt: `end`, `stop` or `error`; None while it goes on."""
        self.num_restarts = 0
        self.num_skipped = 0
        self._steps: deque[Event] = deque(maxlen=_MOST_STEPS)
        self._feeds: deque[Event] = deque(maxlen=_FEEDS)

    def take(self, event: Event) -> None:
        """The next event of the run."""
        kind = event["event"]
        if kind == "step":
            self._take_step(event)
        elif kind == "start":
            self._take_start(event)
        elif kind == "feed":
            self._feeds.append(event)
            self.num_skipped = event.get("skipped") or 0
        elif kind == "guard":
            self.guards.append(event)
        elif kind == "alarm":
            self.alarm = event
        elif kind == "loader":
            self.loader = event
        elif kind == "evaluate":
            self.evaluation = event
        elif kind == "checkpoint":
            self.checkpoint = event
        elif kind in ("end", "stop", "error"):
            self.last = event

    def _take_start(self, event: Event) -> None:
        self.num_restarts += self.start is not None
        self.start, self.last, self.loader = event, None, None
        self._steps.clear()
        self._feeds.clear()

    def _take_step(self, event: Event) -> None:
        self.step = event
        self._steps.append(event)
        if isinstance(event.get("loss"), int | float):
            self.loss.add(event["loss"])
        while len(self._steps) > _LEAST_STEPS and _time(event) - _time(self._steps[0]) > _WINDOW_SEC:
            self._steps.popleft()

    def run(self) -> Run:
        """The latest half minute as a run of its own, to be judged as a whole one is."""
        start = [] if self.start is None else [self.start]
        return run_of([*start, *self._steps, *self._feeds], self.path)

    @property
    def samples_per_sec(self) -> float | None:
        """Over the latest half minute, by the time of the steps that say how many samples they have."""
        counted = [step for step in self._steps if step.get("samples") is not None]
        sec = sum(step.get("sec") or 0.0 for step in counted)
        return sum(step["samples"] for step in counted) / sec if sec else None

    @property
    def sec_per_step(self) -> float | None:
        """Over the latest half minute."""
        return sum(step.get("sec") or 0.0 for step in self._steps) / len(self._steps) if self._steps else None

    @property
    def total_steps(self) -> int | None:
        """What the run is to have in all, where it is known."""
        total = None if self.start is None else self.start.get("total_steps")
        return int(total) if total else None

    @property
    def sec_left(self) -> float | None:
        """At the pace of the latest half minute, evaluations left out."""
        if self.total_steps is None or self.step is None or self.sec_per_step is None:
            return None
        return max(0, self.total_steps - int(self.step["step"])) * self.sec_per_step

    @property
    def state(self) -> str:
        """ "waiting", "running", "complete", "stopped", "failed", or "gone" without a word."""
        if self.start is None:
            return "waiting"
        if self.last is not None:
            return {"end": "complete", "stop": "stopped", "error": "failed"}[self.last["event"]]
        return "gone" if _is_gone(self.start) else "running"


def silence_sec(present: Present) -> float | None:
    """How long ago the latest step was written; None: there was none."""
    return None if present.step is None else max(0.0, time.time() - _time(present.step))


def _is_gone(start: Event) -> bool:
    """Whether none of an attempt's processes runs any more, which only their own machine can tell."""
    pids = start.get("pids") or []
    if (start.get("machine") or {}).get("host") != platform.node() or not pids:
        return False
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def _time(event: Event) -> float:
    return float(event.get("time") or 0.0)
