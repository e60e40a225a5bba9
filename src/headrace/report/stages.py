"""The stages of the feed, from the meters that a run wrote down, and which of them holds the others up.

Meters count from the start of an attempt. The first reading holds the start-up, so rates are taken between the first
and the last reading where there are two, over the seconds of the steps between them: a feed has nothing to do while
the model is evaluated. Busy and wait seconds are summed over a stage's threads; "read" and "verify" are the work of the
same ones. "hand-off" is the trainer's side: its wait is the trainer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.report.runlog import Event, Run

_SATURATED = 0.75
_SHARED_THREADS = ("read", "verify")


@dataclass(frozen=True)
class Stage:
    """What one stage of the feed did over `elapsed_sec` seconds of steps; None where that is not known."""

    name: str
    items: int
    bytes: int
    busy_sec: float
    wait_sec: float
    threads: int | None
    elapsed_sec: float | None

    @property
    def busy_threads(self) -> float | None:
        """How many of its threads were at work on average."""
        return self.busy_sec / self.elapsed_sec if self.elapsed_sec else None

    @property
    def busy_share(self) -> float | None:
        """How much of its threads' time it worked, 0 to 1."""
        return min(1.0, self.busy_threads / self.threads) if self.busy_threads is not None and self.threads else None

    @property
    def items_per_sec(self) -> float | None:
        """The rate that it had in the run."""
        return self.items / self.elapsed_sec if self.elapsed_sec else None

    @property
    def bytes_per_sec(self) -> float | None:
        """The rate that it had in the run."""
        return self.bytes / self.elapsed_sec if self.elapsed_sec and self.bytes else None

    @property
    def items_per_thread_sec(self) -> float | None:
        """Items that one thread makes in a second of work: what more threads would each add."""
        return self.items / self.busy_sec if self.busy_sec > 0 and self.items else None


def feed_stages(run: Run) -> list[Stage]:
    """The stages in the order of the flow; none where the run wrote no meters down."""
    readings = [event for event in run.feeds if isinstance(event.get("stages"), dict)]
    if not readings:
        return []
    last = readings[-1]
    first = readings[0] if len(readings) > 1 else {}
    elapsed = _step_seconds(run, first, last)
    before = first.get("stages", {})
    return [
        _stage(name, reading, before.get(name) or {}, elapsed)
        for name, reading in last["stages"].items()
        if isinstance(reading, dict)
    ]


def bottleneck(stages: Sequence[Stage]) -> Stage | None:
    """The stage that holds the feed up: the one whose threads have no time left. None where all have some."""
    together = sum(stage.busy_share or 0 for stage in stages if stage.name in _SHARED_THREADS)

    def load(stage: Stage) -> float:
        return together if stage.name in _SHARED_THREADS else stage.busy_share or 0

    saturated = [stage for stage in stages if load(stage) >= _SATURATED]
    return max(saturated, key=lambda stage: (load(stage), stage.busy_sec), default=None)


def _stage(name: str, last: Event, first: Event, elapsed: float | None) -> Stage:
    def gained(key: str) -> Any:
        return (last.get(key) or 0) - (first.get(key) or 0)

    sums = (gained("items"), gained("bytes"), gained("busy_sec"), gained("wait_sec"))
    return Stage(name, *sums, last.get("threads"), elapsed)


def _step_seconds(run: Run, first: Event, last: Event) -> float | None:
    began = first.get("step") or (run.attempts[-1].step if run.attempts else 0)
    rows = (run.steps["step"] > began) & (run.steps["step"] <= (last.get("step") or 0))
    elapsed = float(np.nansum(run.steps["sec"][rows]))
    return elapsed if elapsed > 0 else None
