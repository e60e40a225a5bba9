"""Rules about what the machine has left: room on the disk, and memory that is used up little by little."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from headrace.alarms.rule import Event, Reading, number

_CHECKPOINTS = 1.5
_SPAN_SEC = 1800.0
_POINTS = 60
_LEAST_GROWTH = 0.01
"""Memory that grows by less than this share of itself in the whole span does not grow."""


class DiskFull:
    """Bytes that the disk of the run's folder has to give, beside what is wanted and what the next checkpoint takes."""

    name = "disk"
    kinds = ("start", "checkpoint", "probe")

    def __init__(self, free_bytes: int) -> None:
        self._least = float(free_bytes)
        self._checkpoint = 0.0
        self._is_theirs = True

    def take(self, event: Event) -> Reading | None:
        """A reading at each probe."""
        if event["event"] == "start":
            config = event.get("config")  # where checkpoints go, if not into the run's folder
            self._is_theirs = not isinstance(config, dict) or config.get("checkpoints") is None
        elif event["event"] == "checkpoint" and self._is_theirs:
            self._checkpoint = number(event, "bytes") or 0.0
        free = number(event, "disk_free_bytes") if event["event"] == "probe" else None
        if free is None:
            return None
        limit = max(self._least, _CHECKPOINTS * self._checkpoint)
        return Reading(free, limit, wrong=free < limit, well=free >= 1.1 * limit)

    def message(self, reading: Reading) -> str:
        """In GB of 10^9 bytes."""
        return f"the disk of the run's folder has {reading.value / 1e9:.3g} GB left: below {reading.limit / 1e9:.3g} GB"


class MemoryCreep:
    """Hours until the machine's memory is used up at the pace at which the process's grows.

    The pace is the Theil-Sen slope, the median of the slopes between any two of 60 points in half an hour, which single
    jumps do not move; and the smaller one of the whole half hour's and of its latter half's, so that memory which fills
    up and then stays does not creep. Nor does what comes down again: the least of each third must be above that of the
    one before.
    """

    name = "memory"
    kinds = ("probe",)

    def __init__(self, hours: float) -> None:
        self._hours = hours
        self._points: deque[tuple[float, float]] = deque(maxlen=_POINTS)
        self._slope = 0.0

    def take(self, event: Event) -> Reading | None:
        """A reading at a probe each half minute, once there was half an hour of them."""
        used = number(event, "memory_bytes")
        left = number(event, "memory_left_bytes")
        if used is None or left is None:
            return None
        time = event["time"]
        if self._points and time - self._points[-1][0] < 0.9 * _SPAN_SEC / _POINTS:
            return None
        self._points.append((time, used))
        if len(self._points) < _POINTS:
            return None
        points = np.array(self._points)
        self._slope = min(theil_sen(points), theil_sen(points[_POINTS // 2 :]))
        grown = self._slope * (points[-1, 0] - points[0, 0])
        floors = points[:, 1].reshape(3, -1).min(1)
        creeps = grown > _LEAST_GROWTH * used and floors[0] < floors[1] < floors[2]
        hours = left / self._slope / 3600 if creeps else math.inf
        return Reading(hours, self._hours, wrong=hours < self._hours, well=hours >= 2 * self._hours)

    def message(self, reading: Reading) -> str:
        """In GB and hours."""
        return (
            f"memory of the process grows by {3600 * self._slope / 1e9:.3g} GB an hour: what is left is used up in "
            f"{reading.value:.3g} hours"
        )


def theil_sen(points: NDArray[np.float64]) -> float:
    """The median of the slopes between any two of the points, shape (n, 2), n at least 2, at different places."""
    first, second = np.triu_indices(len(points), 1)
    rise = points[second, 1] - points[first, 1]
    return float(np.median(rise / (points[second, 0] - points[first, 0])))
