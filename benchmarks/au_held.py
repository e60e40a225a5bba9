"""How many ranks a feed holds at an AU: a search upwards and between, for all feeds by turns."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from au_ranks import FeedError

Trial = Callable[[int], list[float]]
"""Ranks to each one's AU."""


@dataclass
class Search:
    """What was tried of one feed."""

    guess: int
    most: int
    trials: dict[int, list[float]] = field(default_factory=dict)
    held: int = 0
    """The most ranks that held."""
    failed: int | None = None
    """The fewest that did not."""

    def next(self) -> int | None:
        """The number of ranks to try now: by ever larger steps until the edge is between two, then in their middle."""
        step = 1 << max(0, len(self.trials) - 1)
        if not self.trials:
            return min(self.most, max(1, self.guess))
        if self.failed is None:
            return min(self.most, self.held + step) if self.held < self.most else None
        if self.held == 0:
            return max(1, self.failed - step) if self.failed > 1 else None
        return (self.held + self.failed) // 2 if self.failed - self.held > 1 else None

    def add(self, num_ranks: int, utilizations: list[float], least: float) -> None:
        """What a trial gave; none if the ranks failed."""
        self.trials[num_ranks] = utilizations
        if utilizations and statistics.mean(utilizations) >= least:
            self.held = num_ranks
        else:
            self.failed = num_ranks


def search(
    feeds: Mapping[str, Trial], guesses: Mapping[str, float], least: float, most: int, max_trials: int
) -> dict[str, Search]:
    """The searches of all feeds, each of at most so many trials, for a mean AU of at least `least`."""
    searches = {name: Search(int(guesses[name]), most) for name in feeds}
    for _ in range(max_trials):
        for name, trial in feeds.items():
            num_ranks = searches[name].next()
            if num_ranks is None:
                continue
            searches[name].add(num_ranks, _tried(name, trial, num_ranks), least)
    return searches


def _tried(name: str, trial: Trial, num_ranks: int) -> list[float]:
    try:
        utilizations = trial(num_ranks)
    except FeedError as err:
        print(f"  {name}, world size {num_ranks}: not held, {err}", file=sys.stderr)
        return []
    print(f"  {name}, world size {num_ranks}: AU {statistics.mean(utilizations):.3f}", file=sys.stderr)
    return utilizations
