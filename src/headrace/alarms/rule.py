"""What a rule is, and when it rings.

A rule takes a run's events one by one and tells, at some of them, how things stand: a reading. It is wrong, well, or
in between; a bell rings at the first that is wrong, and not again before one was well. Without the in between a value
that sways about its limit would ring all day.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Event: TypeAlias = dict[str, Any]
"""One of a run's own, or one of two that a `Watcher` puts between them and nobody writes: `tick` (a second has passed)
and `probe` (what the machine has left: disk_free_bytes, memory_bytes, memory_left_bytes). All have `time`."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How things stand for a rule."""

    value: float
    limit: float
    wrong: bool
    """Beyond the limit."""
    well: bool
    """Far enough from it for the alarm to be over; never so where it is wrong."""
    subject: int | None = None
    """The rank that it is about; None: the run."""


class Rule(Protocol):
    """Turns events into readings. Remembers what it needs of an attempt; a new one begins with a new rule."""

    @property
    def name(self) -> str:
        """As an alarm has it."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The events that it takes."""

    def take(self, event: Event) -> Reading | None:
        """The next event of these kinds; None: it says nothing new."""

    def message(self, reading: Reading) -> str:
        """A sentence about a reading that is wrong, with units."""


class Bell:
    """Rings once for a row of readings that are wrong, until one is well."""

    def __init__(self) -> None:
        self._rung: set[int | None] = set()

    def hear(self, reading: Reading) -> bool:
        """Whether it rings at this reading; each subject has a bell of its own."""
        if reading.well:
            self._rung.discard(reading.subject)
        rings = reading.wrong and reading.subject not in self._rung
        if rings:
            self._rung.add(reading.subject)
        return rings


def number(event: Event, name: str) -> float | None:
    """A field of an event, where it is there and a number."""
    value = event.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
