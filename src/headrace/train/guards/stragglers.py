"""Ranks that take longer than the others for their own part of a step.

All ranks take the same time for a whole step, since they wait for each other in its reduction. So what is compared is
the rest of it: waiting for the batch, copying and computing, without the communication that no compute hid.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence

from headrace.train.guards.finding import Finding

_LEAST_STEPS, _MOST_STEPS = 10, 1000
_LEAST_EXCESS_USEC = 1000
"""What a busy machine adds to a step by chance is no straggler."""


class Pace:
    """This rank's own time a step, since it was last asked; of the latest 1,000 steps at most."""

    def __init__(self) -> None:
        self._usec: deque[float] = deque(maxlen=_MOST_STEPS)

    def add(self, sec: float) -> None:
        """Count one step."""
        self._usec.append(sec * 1e6)

    def quantiles(self) -> tuple[int, int]:
        """The median and the 90th percentile of the steps counted, in microseconds; begins anew. 0, 0: too few yet."""
        if len(self._usec) < _LEAST_STEPS:
            return 0, 0  # and goes on counting: where it is asked often, there would never be enough
        usec = sorted(self._usec)
        self._usec.clear()
        return round(usec[len(usec) // 2]), round(usec[len(usec) * 9 // 10])


def stragglers(step: int, quantiles: Sequence[Sequence[int]], ratio: float) -> list[Finding]:
    """The ranks whose median is more than `ratio` times that of the ranks. `quantiles`: of each rank, as above."""
    medians = [median for median, _ in quantiles]
    if not all(medians):
        return []
    usual = statistics.median_low(medians)
    return [
        Finding(
            "straggler",
            step,
            "noted",
            f"rank {rank} takes {median / usual:.1f} times as long for its part of a step as the others "
            f"({median / 1e3:.3g} ms beside {usual / 1e3:.3g} ms)",
            {"ranks": [rank], "ratio": median / usual, "p50_sec": median / 1e6, "p90_sec": quantiles[rank][1] / 1e6},
        )
        for rank, median in enumerate(medians)
        if median > ratio * usual and median - usual > _LEAST_EXCESS_USEC
    ]
