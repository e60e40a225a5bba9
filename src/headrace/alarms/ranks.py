"""The rule about ranks that hold up the others.

All ranks take the same time for a step, since they wait for each other in it. What a rank does itself tells them apart:
the step without communication, guards and checkpoints. Ranks other than 0 write theirs to RUN/ranks from time to time,
rank 0 has it in its steps. Where the others write nothing, as on another file system, the guards may know.
"""

from __future__ import annotations

import statistics

from headrace.alarms.rule import Event, Reading, number

_WITH_OTHERS = ("communication_sec", "guard_sec", "checkpoint_sec")
_LEAST_EXCESS_SEC = 0.001
"""What a busy machine adds to a step by chance is no straggler."""
_IN_A_ROW = 3
_WELL_SEC = 600.0


class Straggler:
    """How many times as long a rank takes for its own part of a step as the ranks' median, three times in a row.

    Well is a rank that is half as far above it, or that the guards did not find for ten minutes.
    """

    name = "straggler"
    kinds = ("start", "step", "rank", "feed", "guard", "tick")

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._began = 0.0
        self._world_size = 0
        self._sum, self._steps = 0.0, -1  # the first step, which starts everything up, is left out
        self._own_sec: dict[int, float] = {}
        self._rows: dict[int, int] = {}
        self._found: dict[int, float] = {}

    def take(self, event: Event) -> Reading | None:
        """A reading of a rank whenever it tells of itself, once all have; or at what the guards find."""
        kind, time = event["event"], event["time"]
        if kind == "step":
            if self._world_size < 2:
                return None
            self._add(event)
        elif kind == "rank" and time >= self._began:
            return self._told(event.get("rank"), event, number(event, "steps") or 0)
        elif kind == "feed" and self._steps > 0:
            steps, self._steps = self._steps, 0
            total, self._sum = self._sum, 0.0
            return self._told(0, {"sec": total}, steps)
        elif kind == "start":
            self._began, self._world_size = time, int(number(event, "world_size") or 0)
        elif kind == "guard" and event.get("guard") == "straggler" and len(self._own_sec) < 2:
            return self._noted(event, time)
        return self._forget(time) if self._found else None

    def _add(self, event: Event) -> None:
        self._steps += 1
        if self._steps > 0 and (sec := _own(event)) is not None:
            self._sum += sec

    def _told(self, rank: object, event: Event, steps: float) -> Reading | None:
        sec = _own(event)
        if type(rank) is not int or sec is None or steps < 1:
            return None
        own = self._own_sec[rank] = sec / steps
        if self._world_size < 2 or len(self._own_sec) < self._world_size:
            return None
        usual = statistics.median_low(self._own_sec.values())
        ratio = own / usual if usual > 0 else 1.0
        far = ratio > self._ratio and own - usual > _LEAST_EXCESS_SEC
        self._rows[rank] = self._rows.get(rank, 0) + 1 if far else 0
        well = not far and ratio <= 1 + (self._ratio - 1) / 2
        return Reading(ratio, self._ratio, wrong=self._rows[rank] >= _IN_A_ROW, well=well, subject=rank)

    def _noted(self, event: Event, time: float) -> Reading | None:
        ratio, ranks = number(event, "ratio"), event.get("ranks") or [0]
        if ratio is None or ratio <= self._ratio:
            return None
        self._found[ranks[0]] = time
        return Reading(ratio, self._ratio, wrong=True, well=False, subject=ranks[0])

    def _forget(self, time: float) -> Reading | None:
        rank = next((rank for rank, found in self._found.items() if time - found > _WELL_SEC), None)
        if rank is None:
            return None
        del self._found[rank]
        return Reading(1.0, self._ratio, wrong=False, well=True, subject=rank)

    def message(self, reading: Reading) -> str:
        """Of one rank."""
        return f"rank {reading.subject} takes {reading.value:.3g} times as long for its part of a step as the others"


def _own(event: Event) -> float | None:
    """Seconds of an event's steps in which the rank did not wait for others."""
    sec = number(event, "sec")
    return None if sec is None else max(0.0, sec - sum(number(event, part) or 0.0 for part in _WITH_OTHERS))
