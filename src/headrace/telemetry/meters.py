"""Meters: what every stage of the feed counts.

A stage is busy while it works on items and waits while it has none, or while nobody takes what it made. The verdict,
the report and later the tuning all read these same four numbers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter showed: sums since the stage began. Seconds are summed over the stage's threads."""

    items: int = 0
    bytes: int = 0
    busy_sec: float = 0.0
    wait_sec: float = 0.0

    def __add__(self, other: Reading) -> Reading:
        return Reading(
            self.items + other.items,
            self.bytes + other.bytes,
            self.busy_sec + other.busy_sec,
            self.wait_sec + other.wait_sec,
        )

    def __sub__(self, before: Reading) -> Reading:
        return Reading(
            self.items - before.items,
            self.bytes - before.bytes,
            self.busy_sec - before.busy_sec,
            self.wait_sec - before.wait_sec,
        )


class Meter:
    """Counts one stage's items, bytes, busy and wait seconds. Safe to use from several threads."""

    __slots__ = ("_busy_sec", "_bytes", "_items", "_lock", "_wait_sec")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items = self._bytes = 0
        self._busy_sec = self._wait_sec = 0.0

    def add(self, items: int = 0, num_bytes: int = 0, busy_sec: float = 0.0, wait_sec: float = 0.0) -> None:
        """Add to the sums."""
        with self._lock:
            self._items += items
            self._bytes += num_bytes
            self._busy_sec += busy_sec
            self._wait_sec += wait_sec

    def read(self) -> Reading:
        """The sums so far."""
        with self._lock:
            return Reading(self._items, self._bytes, self._busy_sec, self._wait_sec)
