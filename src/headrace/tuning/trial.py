"""The process of one trial, `python -m headrace.tuning.trial JOB`: it launches a run on a share of the cores.

SIGTERM ends the run with a checkpoint, and so does the end of the process that searches.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass

from headrace.errors import HeadraceError
from headrace.train.launch import launch
from headrace.train.worker import Job

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class TrialJob:
    """What the process of a trial is told."""

    job: Job
    nproc: int
    cores: tuple[int, ...]
    parent: int
    """The process that searches."""

    def to_json(self) -> str:
        """As the process's one argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialJob:
        """From the process's argument."""
        fields = json.loads(text)
        return cls(Job.from_json(json.dumps(fields["job"])), fields["nproc"], tuple(fields["cores"]), fields["parent"])


def main(argument: str) -> None:
    """Run a trial to its end. An error is left in the run's folder, its line on stderr."""
    trial = TrialJob.from_json(argument)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != trial.parent:
        sys.exit("the process that searches is gone")
    os.sched_setaffinity(0, trial.cores)
    try:
        launch(trial.job, trial.nproc, max_restarts=0)
    except HeadraceError as err:
        sys.exit(f"headrace: {err}")


if __name__ == "__main__":
    main(sys.argv[1])
