"""How many threads transform, as the trainer knows it: the number that was given, or what a loader process found."""

from __future__ import annotations

import logging
import os

from headrace.load.job import Delivery
from headrace.load.thread_tuner import TIMES_CPUS, ThreadLimits
from headrace.rank import local_world_size

_log = logging.getLogger("headrace.load")


class Threads:
    """Of one loader."""

    def __init__(self, given: int | None, processes: int) -> None:
        """None given, they are tuned where one process transforms; several have one thread each."""
        self._given = given
        self._is_tuned = given is None and processes == 1
        self._found: int | None = None

    @property
    def at_first(self) -> int:
        """The number given; else one a usable CPU, of which each rank of this machine has its share."""
        return self._given or max(1, int(_cpus()))

    @property
    def now(self) -> int:
        """What was found last, by the present loader process or one before it."""
        return self._found or self.at_first

    @property
    def limits(self) -> ThreadLimits | None:
        """Within what a loader process that starts now tunes them; None: not at all."""
        return ThreadLimits(self.now, TIMES_CPUS * self.at_first, _cpus()) if self._is_tuned else None

    def note(self, delivery: Delivery) -> None:
        """Take down what the loader process says with its meters; what it changed is logged."""
        if self._is_tuned:
            self._found = delivery.num_threads
        for decision in delivery.decisions:
            _log.info("%s", decision)


def _cpus() -> float:
    return len(os.sched_getaffinity(0)) / local_world_size()
