"""A trial under way: its process, what its run has found so far, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import OptionError, StorageError
from headrace.telemetry import FILE_NAME, Tail
from headrace.train.failure import first_failure
from headrace.train.worker import Job
from headrace.tuning.trial import TrialJob

LOG = "trial.log"
_DEVICES = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several trials at a time may use of the machine."""

    slot: int
    cores: tuple[int, ...]
    devices: str | None
    """For CUDA_VISIBLE_DEVICES; None: as it is."""

    @classmethod
    def of(cls, slot: int, jobs: int, nproc: int, gpus: list[str]) -> Share:
        """That of place `slot` among `jobs` trials of `nproc` processes: cores and GPUs apart while there are enough.

        `gpus`: those that this process may use, by the names that CUDA_VISIBLE_DEVICES takes.
        """
        cores = sorted(os.sched_getaffinity(0))
        first = slot * nproc
        devices = [gpus[n % len(gpus)] for n in range(first, first + min(nproc, len(gpus)))] if gpus else None
        return cls(slot, tuple(cores[slot::jobs] or cores), ",".join(devices) if devices else None)


def visible_gpus() -> list[str]:
    """The GPUs of this process, by name; none on a machine without."""
    named = os.environ.get(_DEVICES)
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(n) for n in range(torch.cuda.device_count())]


class RunningTrial:
    """One trial, from its start to its end."""

    def __init__(self, number: int, job: Job, nproc: int, share: Share, metric: str) -> None:
        self.number = number
        self.run_dir = Path(job.run_dir)
        self.evaluations: list[float | None] = []
        """The metric at each evaluation so far; None where it was not finite."""
        self.pruned = False
        self._metric = metric
        self._tail = Tail(self.run_dir / FILE_NAME)
        self._ended = False
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            log = open(self.run_dir / LOG, "ab")  # noqa: SIM115 - closed below
        except OSError as err:
            raise StorageError(f"the trial's folder {self.run_dir} cannot be written: {err.strerror}") from err
        argument = TrialJob(job, nproc, share.cores, os.getpid()).to_json()
        with log:
            # A session of its own: Ctrl-C reaches the process that searches, which ends its trials one way.
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", "headrace.tuning.trial", argument],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | ({_DEVICES: share.devices} if share.devices else {}),
                start_new_session=True,
            )

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def news(self) -> int:
        """Read what the run has written since the last call; how many evaluations that were.

        Raises OptionError if it evaluates, but not the metric.
        """
        before = len(self.evaluations)
        for event in self._tail.new_events():
            self._ended = self._ended or event["event"] == "end"
            if event["event"] == "evaluate":
                self.evaluations.append(self._value(event))
        return len(self.evaluations) - before

    def prune(self) -> None:
        """Have the run end with a checkpoint; it may take until after its step."""
        self.pruned = True
        self.stop()

    def stop(self) -> None:
        """As by a scheduler: SIGTERM."""
        if self.is_alive():
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for the process's end."""
        self._process.wait()

    def is_complete(self) -> bool:
        """Whether the run, which has ended, came to the end of its plan, and all its processes with it."""
        return self._ended and self._process.returncode == 0

    def reason(self) -> str:
        """Why a run that has ended did not come to its end."""
        failure = first_failure(self.run_dir)
        if failure is not None:
            return str(failure.error())
        code = self._process.returncode
        if code < 0:
            return f"it was killed by {signal.Signals(-code).name}"
        lines = (self.run_dir / LOG).read_text("utf-8", "replace").strip().splitlines()
        said = lines[-1].removeprefix("headrace: ") if code and lines else "it was told to stop"
        return said if self.evaluations or not code else f"{said}; see {self.run_dir / LOG}"

    def _value(self, event: dict[str, Any]) -> float | None:
        found = {"loss": event["loss"], **event["metrics"]}
        if self._metric not in found:
            raise OptionError(
                f"a search goes by a metric that the recipe evaluates: got {self._metric!r}, it has {', '.join(found)}"
            )
        value: float | None = found[self._metric]
        return value
