"""What a process's deaths say: whether to go on with a new one, and which sample is to blame.

A death makes suspects of the samples that were being transformed. The next process comes to them one at a time, so
that a second death names one. A sample over which a process died twice is condemned: no process transforms it again,
and it is an error of that sample's own, which goes the way of all those. Where anybody's signal may have ended the
process (SIGKILL, of which out of memory is the usual cause) it takes three deaths.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from headrace.errors import LoaderError
from headrace.load.marks import PROBED, Where
from headrace.load.process import ProcessLostError

MAX_RECORDED = 1_000
"""Restarts that are kept in full; all are counted."""
_DEATHS, _DEATHS_FROM_OUTSIDE = 2, 3

_log = logging.getLogger("headrace.load")

ProcessKind = Literal["loader", "worker"]


@dataclass(frozen=True, slots=True)
class Restart:
    """A process that ended unasked, or hung, and was replaced."""

    process: ProcessKind
    """The loader process, or one of its worker processes."""
    time: float
    """Unix seconds at which its end was noticed."""
    epoch: int
    step: int
    """The batch that was due, or, for a worker process, that it worked for."""
    reason: str
    """How it ended: "exit code 3", "killed by SIGKILL", "hung for 300 s"."""
    positions: tuple[int, ...]
    """Positions, in the epoch, of the samples that it was transforming."""
    stacks: str
    """The stacks of its threads, where it crashed or hung; else empty."""

    @classmethod
    def of(cls, process: ProcessKind, epoch: int, step: int, lost: ProcessLostError) -> Restart:
        """The record of a death."""
        positions = tuple(position for among, position in lost.samples if among != PROBED)
        return cls(process, lost.time, epoch, step, lost.reason, positions, lost.stacks)


class Restarts:
    """The restarts of a loader's life: the first 1,000 in full, the number of all; each is logged as a warning."""

    def __init__(self) -> None:
        self.recorded: list[Restart] = []
        self.num = 0

    def note(self, restart: Restart) -> None:
        """Put one on record."""
        self.num += 1
        if len(self.recorded) < MAX_RECORDED:
            self.recorded.append(restart)
        stacks = f"\n{restart.stacks}" if restart.stacks else ""
        _log.warning(
            "the %s process was replaced at step %d of epoch %d: %s%s",
            *(restart.process, restart.step, restart.epoch, restart.reason, stacks),
        )


class Cases:
    """The deaths of one process and its successors, by sample, until what they were at is past."""

    def __init__(self, process: ProcessKind, max_restarts: int) -> None:
        """At most `max_restarts` successors in a row, without a batch or a condemned sample between."""
        self.condemned: dict[Where, str] = {}
        """Samples that no process transforms again, with the reason."""
        self._process = process
        self._max_restarts = max_restarts
        self._deaths: dict[Where, list[ProcessLostError]] = {}
        self._in_a_row: list[ProcessLostError] = []

    @property
    def suspects(self) -> Collection[Where]:
        """Samples that a process was at when it died."""
        return self._deaths.keys()

    def died(self, lost: ProcessLostError) -> None:
        """Judge a death. Raises LoaderError where the process is not to be replaced once more."""
        self._in_a_row.append(lost)
        for where in set(lost.samples):
            self._deaths.setdefault(where, []).append(lost)
        if len(set(lost.samples)) == 1 and self._is_proved(lost.samples[0]):
            where = lost.samples[0]
            deaths = self._deaths.pop(where)
            self.condemned[where] = f"the {self._process} process did not survive it, {_listed(deaths)}"
            self._in_a_row.clear()
        elif len(self._in_a_row) > self._max_restarts:
            deaths, self._in_a_row = self._in_a_row, []
            raise LoaderError(self._gave_up(deaths))

    def went_on(self, epoch: int, position: int) -> None:
        """A batch came, and everything before this place is past."""
        self._in_a_row.clear()
        for known in (self._deaths, self.condemned):
            for where in [where for where in known if where[0] != PROBED and where < (epoch, position)]:
                del known[where]

    def _is_proved(self, where: Where) -> bool:
        deaths = self._deaths[where]
        return len(deaths) >= (_DEATHS_FROM_OUTSIDE if any(one.from_outside for one in deaths) else _DEATHS)

    def _gave_up(self, deaths: list[ProcessLostError]) -> str:
        at = ", ".join(dict.fromkeys(map(str, deaths[-1].marks))) or "nothing of the user's"
        return (
            f"the {self._process} process ended without being asked to {_listed(deaths)} in a row, with no batch "
            f"between, the last time at {at}: what it printed above tells why; max_restarts={self._max_restarts} says "
            "how often it is replaced"
        )


def _listed(deaths: list[ProcessLostError]) -> str:
    """How often and of what."""
    reasons = ", then ".join(one.reason for one in deaths)
    usual = "; out of memory is the usual cause of SIGKILL" if "SIGKILL" in reasons else ""
    return f"{len(deaths)} time{'s' if len(deaths) > 1 else ''} ({reasons}{usual})"
