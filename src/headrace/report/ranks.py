"""The ranks side by side: where the time of each went, and whether one of them holds up the others.

Ranks take their steps together, so the step of one that is slow is as long for all; on the others it is communication,
which holds their waiting. What a rank does itself, `own_sec`, tells them apart: the step less communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.report.runlog import PARTS, Run


@dataclass(frozen=True)
class RankTime:
    """The mean step of one rank over the last attempt, without its first step; seconds a step by part."""

    rank: int
    steps: int
    parts: dict[str, float]
    """By the names of `runlog.PARTS`."""

    @property
    def sec(self) -> float:
        """Of a step."""
        return sum(self.parts.values())

    @property
    def own_sec(self) -> float:
        """Of a step, in which it did not wait for others."""
        return self.sec - self.parts["communication"]


@dataclass(frozen=True)
class Straggler:
    """The rank that the others wait for. `extra_sec` is what its step has more than the others' do, as they have it."""

    rank: int
    extra_sec: float
    part: str
    """What it takes longest for, compared with the others."""
    others_sec: float
    """The median of what the others do themselves in a step."""
    sec: float
    """A step of the run."""

    @property
    def gain(self) -> float:
        """By how much steps/s would rise if it were as the others are: 0.4 is 40 % more."""
        return self.extra_sec / (self.sec - self.extra_sec)


def rank_times(run: Run) -> list[RankTime]:
    """Every rank's, in their order; only rank 0's where the others wrote nothing."""
    sums: dict[int, dict[str, float]] = {}
    for event in run.ranks:
        mine = sums.setdefault(int(event["rank"]), {"steps": 0})
        for name in ("steps", *(f"{part}_sec" for part in PARTS)):
            mine[name] = mine.get(name, 0) + (event.get(name) or 0)
    found = [_first_rank(run)]
    for rank, mine in sorted(sums.items()):
        parts = {part: mine[f"{part}_sec"] / mine["steps"] for part in PARTS}
        found.append(RankTime(rank, int(mine["steps"]), parts))
    return [one for one in found if one is not None]


def straggler(times: Sequence[RankTime], least_share: float = 0.1) -> Straggler | None:
    """The rank whose own step is longest, if at least that share of a step is more than what the others do."""
    if len(times) < 2:
        return None
    slowest = max(times, key=lambda one: one.own_sec)
    others = [one for one in times if one is not slowest]
    usual = float(np.median([one.own_sec for one in others]))
    extra = slowest.own_sec - usual
    sec = float(np.mean([one.sec for one in times]))
    if extra < least_share * sec or extra >= sec:
        return None
    more: dict[str, Any] = {
        part: slowest.parts[part] - float(np.median([one.parts[part] for one in others]))
        for part in PARTS
        if part != "communication"
    }
    return Straggler(slowest.rank, extra, max(more, key=lambda part: more[part]), usual, sec)


def _first_rank(run: Run) -> RankTime | None:
    rows = run.steady_rows()
    if run.attempts and (first := run.attempts[-1].first_row) is not None:
        rows[:first] = False
    for part in PARTS:
        rows &= np.isfinite(run.steps[f"{part}_sec"])
    steps = int(rows.sum())
    if not steps:
        return None
    return RankTime(0, steps, {part: float(run.steps[f"{part}_sec"][rows].mean()) for part in PARTS})
