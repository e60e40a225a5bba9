"""A run under way, added up once: what is new in its events joins what is known, at the cost of the new alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from headrace.report.beside import KINDS, Beside, beside_of
from headrace.report.follow import Follower, Present
from headrace.report.runlog import Column, Event, Run, is_of_last_attempt, run_of
from headrace.telemetry import RANKS, Tail

_LEAST_ROWS = 1024


class GrowingRun:
    """The run at a path, as far as its events were read. One thread at a time may use it."""

    def __init__(self, path: str | Path) -> None:
        """`path`: the run's folder, or its file of events. Raises StorageError where neither is."""
        self._given = path
        self._begin()

    def _begin(self) -> None:
        self._follower = Follower(self._given)
        self.present = Present(self._follower.path)
        """What the run is at now."""
        self.run = run_of([], self._follower.path)
        """All of it; its columns are good until the next `update`, and not to be written to."""
        self._columns = {  # of a run without events only what has columns is a mapping
            field.name: _Columns() for field in fields(Run) if isinstance(getattr(self.run, field.name), Mapping)
        }
        self._num_events = 0
        self._rare: list[Event] = []
        self._ranks = _Ranks(self._follower.path.parent / RANKS)

    def update(self) -> bool:
        """Take in what is new in the run's events; whether anything is. Raises StorageError if it cannot be read."""
        has_gone = self._follower.begins_anew()
        if has_gone:
            self._begin()
        known = self._num_events
        found = self._new()
        has_new = self._num_events > known
        if found.attempts and known:
            # The run was started again, which takes back steps and what came of them: it is added up anew.
            self._begin()
            found = self._new()
        if has_new:
            self.run = self._joined(found)
        if self._ranks.update() or has_new or has_gone:
            self.run = replace(self.run, ranks=self._ranks.of_attempt(self.run))
            return True
        return False

    def beside(self) -> Beside:
        """What there is beside the steps. Raises StorageError."""
        return beside_of(self._rare, self._follower.path.parent)

    def _new(self) -> Run:
        return run_of(self._noted(self._follower.new_events()), self._follower.path)

    def _noted(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            self._num_events += 1
            self.present.take(event)
            if event["event"] in KINDS:
                self._rare.append(event)
            yield event

    def _joined(self, found: Run) -> Run:
        joined: dict[str, Any] = {}
        for field in fields(Run):
            old, new = getattr(self.run, field.name), getattr(found, field.name)
            if field.name in self._columns:
                joined[field.name] = self._columns[field.name].extended(new, found.num_steps)
            elif isinstance(new, tuple):
                joined[field.name] = old + new
            else:
                joined[field.name] = old if new is None else new
        return replace(found, **joined)


class _Ranks:
    """What ranks other than 0 write of their own time, each in a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tails: dict[Path, Tail] = {}
        self._starts: dict[Path, Event] = {}
        self._events: dict[Path, list[Event]] = {}

    def update(self) -> bool:
        """Take in what is new; whether anything is."""
        has_new = False
        for path in self._folder.glob("rank-*.jsonl"):
            for event in self._tails.setdefault(path, Tail(path)).new_events():
                has_new = True
                if event["event"] == "start":
                    self._starts[path], self._events[path] = event, []
                elif event["event"] == "rank":
                    self._events.setdefault(path, []).append(event)
        return has_new

    def of_attempt(self, run: Run) -> tuple[Event, ...]:
        """What came from the ranks that take part in the run's last attempt."""
        taking_part = sorted(path for path, start in self._starts.items() if is_of_last_attempt(start, run))
        return tuple(event for path in taking_part for event in self._events[path])


class _Columns:
    """Columns of equal length that rows are added to; one that is not there in some rows is NaN in them."""

    def __init__(self) -> None:
        self._num_rows = 0
        self._values: dict[str, Column] = {}

    def extended(self, more: Mapping[str, Column], num_rows: int) -> dict[str, Column]:
        """The columns with these rows added, without a copy of what was there."""
        first, last = self._num_rows, self._num_rows + num_rows
        self._num_rows = last
        for name in {**self._values, **more}:
            column = self._with_room(name, last)
            column[first:last] = more.get(name, np.nan)
        return {name: column[:last] for name, column in self._values.items()}

    def _with_room(self, name: str, num_rows: int) -> Column:
        column = self._values.get(name, np.zeros(0))
        if name not in self._values or len(column) < num_rows:
            larger = np.full(max(_LEAST_ROWS, 2 * num_rows), np.nan)
            larger[: len(column)] = column
            self._values[name] = column = larger
        return column
