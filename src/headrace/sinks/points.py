"""From a run's events to named numbers over its steps, which is what TensorBoard, MLflow and Weights & Biases show.

Names say what a number is of, and its unit: `train/loss`, `time/wait_sec`, `evaluate/accuracy`, `feed/read/bytes`. A
field that a later release writes gets its name by the same rule. A fast run makes more steps than anybody looks at, so
steps that end within `every_sec` of each other become one point, their mean; windows follow the times in the events, so
that a finished run gives the points that it gave while it went on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Event: TypeAlias = dict[str, Any]

_NO_NUMBERS = ("start", "stop", "end", "error", "guard", "alarm", "profile", "sink", "loader_restart")
"""Events that tell of something that happened, not of how much there was."""
_NO_VALUES = ("event", "time", "step")
_LAST = "train/epoch"
_MOST_IN_LIST = 64


@dataclass(frozen=True, slots=True)
class Point:
    """Numbers of one step, or of some steps that end with it."""

    step: int
    """Completed steps."""
    time: float
    """Unix seconds."""
    values: Mapping[str, float]


@dataclass(slots=True)
class _Window:
    """Steps that become one point."""

    began: float
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    step: int = 0
    time: float = 0.0
    epoch: float | None = None

    def add(self, point: Point) -> None:
        self.step, self.time = point.step, point.time
        self.epoch = point.values.get(_LAST)
        for name, value in point.values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def point(self) -> Point:
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        if self.epoch is not None:
            means[_LAST] = self.epoch
        sec, samples = means.get("time/step_sec"), means.get("train/samples")
        if sec and samples is not None:
            means["train/samples_per_sec"] = samples / sec
        return Point(self.step, self.time, means)


class Points:
    """Makes points of events, in the order in which they were written."""

    def __init__(self, every_sec: float) -> None:
        self._every_sec = every_sec
        self._window: _Window | None = None
        self._step = 0

        self.held = 0
        """Events since the first step that waits for others to become one point with."""

    def take(self, event: Event) -> list[Point]:
        """What is ready with the next event: of steps those before it, of other numbers its own."""
        self.held += self._window is not None
        self._step = event["step"] if isinstance(event.get("step"), int) else self._step
        point = point_of({"step": self._step, **event})  # what has no step of its own, such as `host`, is of the latest
        if event["event"] in _NO_NUMBERS:
            return self.rest()  # the run may have ended, or gone back to an earlier step
        if event["event"] != "step" or point is None:
            return [] if point is None else [point]
        ready = []
        if self._window is not None and point.time >= self._window.began + self._every_sec:
            ready = self.rest()
        if self._window is None:
            self._window, self.held = _Window(point.time), 1
        self._window.add(point)
        return ready if self._every_sec else [*ready, *self.rest()]

    def rest(self) -> list[Point]:
        """What is held, as a point; there is more to come, or not."""
        window, self._window = self._window, None
        self.held = 0
        return [] if window is None else [window.point()]


def point_of(event: Event) -> Point | None:
    """The numbers of one event; None for one that has none, or no step."""
    kind, step, time = event["event"], event.get("step"), event.get("time")
    if kind in _NO_NUMBERS or not isinstance(step, int) or not isinstance(time, int | float):
        return None
    values = dict(_step_values(event) if kind == "step" else _values(kind, event))
    return Point(step, float(time), values) if values else None


def _step_values(event: Event) -> Iterator[tuple[str, float]]:
    for name, value in event.items():
        if name == "metrics":
            yield from _flat("train", value)
        elif name == "sec":
            yield from _flat("time/step_sec", value)
        elif name.endswith("_sec"):
            yield from _flat(f"time/{name}", value)
        elif name not in _NO_VALUES:
            yield from _flat(f"train/{name}", value)


def _values(kind: str, event: Event) -> Iterator[tuple[str, float]]:
    for name, value in event.items():
        if name in ("metrics", "stages"):
            yield from _flat(kind, value)
        elif name not in _NO_VALUES:
            yield from _flat(f"{kind}/{name}", value)


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """The numbers in a value, by the way to them; texts, nulls and long lists are left out."""
    if isinstance(value, Mapping):
        for inner, part in value.items():
            yield from _flat(f"{name}/{inner}", part)
    elif isinstance(value, list) and len(value) <= _MOST_IN_LIST:  # a number a rank, or a GPU
        for number, part in enumerate(value):
            yield from _flat(f"{name}/{number}", part)
    elif isinstance(value, int | float):  # a bool too: 1 where it is true
        yield name, float(value)
