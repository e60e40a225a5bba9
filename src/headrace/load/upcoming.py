"""Planned runs that nobody has taken yet, in the order of need; and which of those soon needed lie side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from headrace.load.runs import PlannedRun
from headrace.order import Run

LOOK_RUNS = 8192
"""At most so many runs of the plan are made ahead, however small they are."""


class Upcoming:
    """The rest of a plan. Not thread-safe: used under its reader's lock."""

    def __init__(self, plan: Iterator[PlannedRun], look_bytes: int, bytes_of: Callable[[Run], int]) -> None:
        """Neighbours are looked for among as many bytes of the plan; 0: nobody asks for them."""
        self._plan, self._look_bytes, self._bytes_of = plan, look_bytes, bytes_of
        self._coming: dict[tuple[int, int], PlannedRun] = {}
        self._by_first: dict[tuple[int, int, int], tuple[int, int]] = {}
        """(epoch, piece, first sample) -> what names the run that begins there."""
        self._by_last: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._num_bytes = 0
        self._look()

    @property
    def first(self) -> PlannedRun | None:
        """The one that is needed first; None at the end."""
        return next(iter(self._coming.values()), None)

    def take(self, planned: PlannedRun) -> None:
        """It is not upcoming any more."""
        del self._coming[planned.key]
        self._num_bytes -= self._bytes_of(planned.run)
        epoch, run = planned.key[0], planned.run
        for places, sample in ((self._by_first, run.first), (self._by_last, run.last)):
            if places.get((epoch, run.piece, sample)) == planned.key:
                del places[epoch, run.piece, sample]
        self._look()

    def before(self, planned: PlannedRun) -> PlannedRun | None:
        """The one that ends where this one begins, if it is needed soon."""
        return self._named(self._by_last.get((planned.key[0], planned.run.piece, planned.run.first)))

    def behind(self, planned: PlannedRun) -> PlannedRun | None:
        """The one that begins where this one ends, if it is needed soon."""
        return self._named(self._by_first.get((planned.key[0], planned.run.piece, planned.run.last)))

    def _named(self, key: tuple[int, int] | None) -> PlannedRun | None:
        return None if key is None else self._coming[key]

    def _look(self) -> None:
        while not self._coming or (self._num_bytes < self._look_bytes and len(self._coming) < LOOK_RUNS):
            planned = next(self._plan, None)
            if planned is None:
                return
            self._coming[planned.key] = planned
            self._num_bytes += self._bytes_of(planned.run)
            if self._look_bytes:
                epoch, run = planned.key[0], planned.run
                self._by_first.setdefault((epoch, run.piece, run.first), planned.key)
                self._by_last.setdefault((epoch, run.piece, run.last), planned.key)
