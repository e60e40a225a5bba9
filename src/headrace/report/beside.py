"""What a run's folder holds beside its steps: alarms, the paces of its ranks, the samples it left out.

They are few, and only the page shows them. So its file of events is gone through once more, in which lines of steps are
told apart by their bytes and not parsed again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import orjson

from headrace.errors import StorageError
from headrace.report.runlog import Event
from headrace.report.series import Array
from headrace.telemetry import parse_event, read_lines

SKIPPED_FOLDER = "skipped"
MOST_SKIPPED = 40
"""So many skipped samples are listed; all are counted."""

KINDS = ("alarm", "host", "ranks", "start")
"""The kinds of events that tell of it."""
_RARE = re.compile(rb'"event": ?"(?:alarm|host|ranks|start)"')


@dataclass(frozen=True)
class Paces:
    """How long ranks took for their own part of a step: medians and 90th percentiles in seconds, float64.

    Both are (readings, ranks); `steps` is the step of each reading.
    """

    steps: Array
    p50_sec: Array
    p90_sec: Array

    @property
    def num_ranks(self) -> int:
        """Ranks of the run."""
        return int(self.p50_sec.shape[1])


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out as damaged."""

    rank: str
    key: str
    reason: str


@dataclass(frozen=True)
class Beside:
    """What there is beside the steps; all of it may be empty."""

    alarms: tuple[Event, ...]
    hosts: tuple[Event, ...]
    """What rank 0's machine was busy with, every few seconds."""
    paces: Paces | None
    skipped: tuple[Skipped, ...]
    """The first ones."""
    num_skipped: int


def read_beside(path: Path) -> Beside:
    """What lies beside the steps in a run's file of events, and in its folder. Raises StorageError.

    Where there is no such file, as for a run that is put together in memory, there is nothing.
    """
    return beside_of(_rare_events(path), path.parent)


def beside_of(events: Iterable[Event], folder: Path) -> Beside:
    """What events of `KINDS` add up to, with what lies in the run's folder. Raises StorageError."""
    alarms: list[Event] = []
    paces: list[Event] = []
    hosts: list[Event] = []
    for event in events:
        if event["event"] == "alarm":
            alarms.append(event)
        elif event["event"] == "ranks":
            paces.append(event)
        elif event["event"] == "host":
            hosts.append(event)
        else:  # a start: what came after the step that it resumed from is done again
            resumed_from = event.get("step") or 0
            paces = [old for old in paces if (old.get("step") or 0) <= resumed_from]
    skipped, num_skipped = _skipped(folder / SKIPPED_FOLDER)
    return Beside(tuple(alarms), tuple(hosts), _paces(paces), tuple(skipped), num_skipped)


def _rare_events(path: Path) -> Iterator[Event]:
    try:
        for line in read_lines(path):
            event = parse_event(line) if _RARE.search(line) else None
            if event is not None and event["event"] in KINDS:
                yield event
    except FileNotFoundError:
        return
    except OSError as err:
        raise StorageError(f"cannot read the run's events from {path}: {err.strerror}") from err


def _paces(events: list[Event]) -> Paces | None:
    """Of the latest number of ranks, which a restart may have changed."""
    known = [row for row in map(_reading, events) if row is not None]
    same = [row for row in known if len(row[1]) == len(known[-1][1])]
    if not same:
        return None
    steps, p50, p90 = zip(*same, strict=True)
    return Paces(np.array(steps, np.float64), np.array(p50, np.float64), np.array(p90, np.float64))


def _reading(event: Event) -> tuple[int, list[float], list[float]] | None:
    step, p50, p90 = (event.get(name) for name in ("step", "p50_sec", "p90_sec"))
    if not isinstance(step, int) or not _are_numbers(p50) or not _are_numbers(p90) or len(p50) != len(p90):
        return None
    return (step, p50, p90) if len(p50) > 1 else None


def _are_numbers(values: Any) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(isinstance(value, int | float) for value in values)


def _skipped(folder: Path) -> tuple[list[Skipped], int]:
    """The first samples of the list, in the order of ranks, and how many there are."""
    shown: list[Skipped] = []
    count = 0
    try:
        for path in sorted(folder.glob("rank*.jsonl"), key=lambda path: (len(path.name), path.name)):
            rank = path.stem.removeprefix("rank")
            with open(path, "rb") as file:
                for line in file:
                    count += 1
                    if len(shown) < MOST_SKIPPED:
                        shown.append(_entry(rank, line))
    except OSError as err:
        raise StorageError(f"cannot read the list of skipped samples in {folder}: {err.strerror}") from err
    return shown, count


def _entry(rank: str, line: bytes) -> Skipped:
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:  # a crash cut it off
        said = None
    said = said if isinstance(said, dict) else {"key": line.decode("utf-8", "replace").strip()}
    return Skipped(rank, str(said.get("key") or ""), str(said.get("reason") or ""))
