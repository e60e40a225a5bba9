"""A run, read back from its events.

A run may have been killed and resumed, and then its file holds some steps twice: those that came after the last
checkpoint were done again. What is read here is the one history that led to the final state: steps and evaluations of
an earlier attempt beyond the step that a later attempt resumed from are taken out, and counted as lost work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.errors import StorageError
from headrace.telemetry import FILE_NAME, RANKS, read_events

Event: TypeAlias = dict[str, Any]
Column: TypeAlias = NDArray[np.float64]

PARTS = ("compute", "communication", "copy", "wait", "guard", "checkpoint", "rest")
"""The parts of a step's wall time, in the order in which they are shown."""
COMPUTE_PARTS = ("forward", "backward", "optimizer")
"""What compute is made of, where the loop can see it."""

_SECONDS = tuple(f"{part}_sec" for part in (*PARTS, *COMPUTE_PARTS, "launch"))
_COUNTS = ("weight", "flops", "mfu", "sent_bytes", "saved_bytes", "loss_scale")
_NUMBERS = ("step", "epoch", "loss", "lr", "samples", *_COUNTS, "sec", "time", *_SECONDS)


@dataclass(frozen=True)
class Attempt:
    """One start of the run: what the start event says, and what the attempt came to."""

    start: Event
    first_row: int | None
    """Index of its first step in `Run.steps`; None where a later attempt did that step again."""
    lost_steps: int = 0
    """Steps of earlier attempts that this one had to do again."""
    lost_sec: float = 0.0

    @property
    def step(self) -> int:
        """The step that it resumed from; 0 for a fresh start."""
        return int(self.start.get("step") or 0)


@dataclass(frozen=True)
class Run:
    """What the events of a run add up to. `steps` has a float64 column for every field of the step events."""

    path: Path
    attempts: tuple[Attempt, ...]
    steps: Mapping[str, Column]
    metrics: Mapping[str, Column]
    """Training metrics by name, one value a step; NaN where a step has none."""
    evaluations: tuple[Event, ...]
    checkpoints: tuple[Event, ...]
    feeds: tuple[Event, ...]
    """The meters of the feed, of the last attempt; they count from its start."""
    loader_restarts: tuple[Event, ...]
    """Processes of the loader that ended or hung, and were replaced, of all attempts."""
    guards: tuple[Event, ...]
    """What the Trainer's guards found, and what was done."""
    stops: tuple[Event, ...]
    errors: tuple[Event, ...]
    ranks: tuple[Event, ...]
    """What ranks other than 0 wrote of their own time in the last attempt: sums over some steps each."""
    end: Event | None
    """The last event of a run that was finished; None for one that is under way, stopped or failed."""
    last_time: float | None

    @property
    def num_steps(self) -> int:
        """Completed steps in the history that counts."""
        return len(self.steps["step"])

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a step's time as finely as the run knows them of every step: those of compute in place of it."""
        timed = np.isfinite(self.steps["sec"])
        known = timed.any() and all(np.isfinite(self.steps[f"{part}_sec"][timed]).all() for part in COMPUTE_PARTS)
        return (*COMPUTE_PARTS, *PARTS[1:]) if known else PARTS

    @property
    def lost_steps(self) -> int:
        """Steps that were done and had to be done again."""
        return sum(attempt.lost_steps for attempt in self.attempts)

    @property
    def lost_sec(self) -> float:
        """Seconds of the steps that had to be done again."""
        return sum(attempt.lost_sec for attempt in self.attempts)

    @property
    def num_restarts(self) -> int:
        """How often the run was started again."""
        return max(0, len(self.attempts) - 1)

    def steady_rows(self) -> NDArray[np.bool_]:
        """Which steps tell of the run's pace: all but the first of every attempt, which starts everything up, and the
        last one where it holds the checkpoint that a run ends with, which is waited for.
        """
        rows = np.ones(self.num_steps, bool)
        for attempt in self.attempts:
            if attempt.first_row is not None and attempt.first_row < len(rows):
                rows[attempt.first_row] = False
        rows[:1] = False
        if (self.end is not None or self.stops) and self.num_steps and self.steps["checkpoint_sec"][-1] > 0:
            rows[-1:] = False
        return rows


def events_path(run: str | Path) -> Path:
    """The file of events of a run, given that file or the folder that it lies in."""
    path = Path(run)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise StorageError(f"no events of a run at {path}: give the folder of a run, which holds {FILE_NAME}")
    return path


def read_run(run: str | Path) -> Run:
    """The run whose folder, or file of events, this is. Raises StorageError where there is none."""
    path = events_path(run)
    found = run_of(read_events(path), path)
    if found.last_time is None:
        raise StorageError(f"{path} holds no events of a run: give the folder of a run, which holds {FILE_NAME}")
    return replace(found, ranks=tuple(_rank_events(found, path.parent / RANKS)))


def _rank_events(run: Run, folder: Path) -> Iterator[Event]:
    """Of the ranks that took part in the last attempt."""
    for path in sorted(folder.glob("rank-*.jsonl")) if folder.is_dir() else ():
        mine: list[Event] = []
        takes_part = False
        for event in read_events(path):
            if event["event"] == "start":
                takes_part, mine = is_of_last_attempt(event, run), []
            elif event["event"] == "rank" and takes_part:
                mine.append(event)
        yield from mine


def is_of_last_attempt(start: Event, run: Run) -> bool:
    """Whether a rank began, as it says itself, with the run's last start: as one of the processes that this names."""
    pids = run.attempts[-1].start.get("pids") if run.attempts else None
    rank = start.get("rank")
    return isinstance(pids, list) and isinstance(rank, int) and rank < len(pids) and pids[rank] == start.get("pid")


def run_of(events: Iterable[Event], path: Path) -> Run:
    """What these events add up to, in the order in which they were written; `path` is where they came from."""
    reader = _Reader()
    for event in events:
        reader.take(event)
    return reader.result(path)


class _Reader:
    """Takes events in the order in which they were written, and drops what a restart undid."""

    def __init__(self) -> None:
        self.last_time: float | None = None
        self._attempts: list[Attempt] = []
        self._rows: list[tuple[Any, ...]] = []
        self._metrics: list[Mapping[str, Any]] = []
        self._events: dict[str, list[Event]] = {
            kind: [] for kind in ("evaluate", "checkpoint", "feed", "loader_restart", "guard", "stop", "error")
        }
        self._end: Event | None = None

    def take(self, event: Event) -> None:
        kind = event["event"]
        if isinstance(event.get("time"), int | float):
            self.last_time = event["time"]
        if kind == "step" and event.get("step") is not None:
            self._rows.append(tuple(map(event.get, _NUMBERS)))
            norm = event.get("grad_norm")
            metrics = event.get("metrics") or {}
            self._metrics.append(metrics if norm is None else {**metrics, "gradient norm": norm})
        elif kind == "start":
            self._restart(event)
        elif kind == "end":
            self._end = event
        elif kind in self._events:
            self._events[kind].append(event)

    def _restart(self, event: Event) -> None:
        resumed_from = int(event.get("step") or 0)
        keep = len(self._rows)
        while keep and self._rows[keep - 1][0] > resumed_from:
            keep -= 1
        lost = self._rows[keep:]
        sec_at = _NUMBERS.index("sec")
        del self._rows[keep:], self._metrics[keep:]
        for kind in ("evaluate", "checkpoint"):
            self._events[kind] = [old for old in self._events[kind] if (old.get("step") or 0) <= resumed_from]
        self._events["feed"] = []
        self._end = None
        self._attempts = [
            old if (old.first_row or 0) < keep else replace(old, first_row=None) for old in self._attempts
        ]
        self._attempts.append(Attempt(event, keep, len(lost), sum(row[sec_at] or 0.0 for row in lost)))

    def result(self, path: Path) -> Run:
        table = np.array(self._rows, np.float64).reshape(len(self._rows), len(_NUMBERS))
        guard = table[:, _NUMBERS.index("guard_sec")]
        guard[np.isnan(guard)] = 0.0  # a loop without guards says nothing of them
        names = {name: None for metrics in self._metrics for name in metrics}
        return Run(
            path=path,
            attempts=tuple(self._attempts),
            steps={name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(_NUMBERS)},
            metrics={name: np.array([_number(m.get(name)) for m in self._metrics]) for name in names},
            evaluations=tuple(self._events["evaluate"]),
            checkpoints=tuple(self._events["checkpoint"]),
            feeds=tuple(self._events["feed"]),
            loader_restarts=tuple(self._events["loader_restart"]),
            guards=tuple(self._events["guard"]),
            stops=tuple(self._events["stop"]),
            errors=tuple(self._events["error"]),
            ranks=(),
            end=self._end,
            last_time=self.last_time,
        )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan
