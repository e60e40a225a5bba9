"""The record of a run: what the loop did, as events in RUN/events.jsonl, written by rank 0 alone.

Nothing here measures or decides; it puts names to what the loop hands over. docs/report.md lists the events.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from headrace.alarms import Alarms, Watcher
from headrace.rank import local_world_size
from headrace.sinks import END_SEC, Sink, Sinks
from headrace.telemetry import FILE_NAME, EventWriter, HostMeter
from headrace.train.clock import Split
from headrace.train.evaluation import Evaluation
from headrace.train.guards.finding import Finding
from headrace.train.loss_scale import Scaled
from headrace.train.parallel import Traffic
from headrace.train.ranks import RankRecord
from headrace.train.saving import Saved
from headrace.train.skipped import SkippedList
from headrace.train.tally import Totals
from headrace.version import __version__

_FEED_EVERY_SEC = 5.0


class Record(Protocol):
    """Takes what happens in a run."""

    def write(self, event: str, **fields: Any) -> None:
        """Note one event."""

    def write_often(self, event: str, **fields: Any) -> None:
        """Note one of many events, which may be written a moment later."""

    def flush(self) -> None:
        """Write what waits."""

    def close(self) -> None:
        """Nothing more will come."""


class NoRecord:
    """For runs without a folder."""

    def write(self, event: str, **fields: Any) -> None:
        """Nothing is kept."""

    write_often = write

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing was open."""


def open_record(run_dir: Path | None, rank: int) -> Record:
    """Where this rank's events go."""
    if run_dir is None:
        return NoRecord()
    return EventWriter(run_dir / FILE_NAME) if rank == 0 else RankRecord(run_dir, rank)


def feed_sinks(
    sinks: Sequence[Sink], run_dir: Path | None, record: Record, hang_timeout_sec: float | None
) -> AbstractContextManager[Sinks | None]:
    """A context in which the sinks are fed with what is recorded; where nothing is, as on other ranks, it is empty.

    At its end it waits for them for a shorter time than the watchdog has patience.
    """
    if not sinks or run_dir is None or not isinstance(record, EventWriter):
        return nullcontext()
    return Sinks(sinks, run_dir, record.write, END_SEC if hang_timeout_sec is None else min(END_SEC, hang_timeout_sec))


def measure_host(record: Record) -> AbstractContextManager[HostMeter | None]:
    """A context in which it is recorded what the machine is busy with; where nothing is recorded, it is empty."""
    return HostMeter(record.write) if isinstance(record, EventWriter) else nullcontext()


def ring_alarms(alarms: Alarms | None, record: Record) -> AbstractContextManager[Watcher | None]:
    """A context in which alarms ring for what is recorded; where nothing is, as on other ranks, it is empty."""
    return Watcher(alarms, record) if alarms is not None and isinstance(record, EventWriter) else nullcontext()


class Journal:
    """Writes the events of one attempt at a run."""

    def __init__(self, record: Record, skipped: SkippedList) -> None:
        self._record, self._skipped = record, skipped
        self._fed = time.monotonic()
        self._restarts_written = 0

    def flush(self) -> None:
        """Have everything written: what is in a checkpoint must be in the record."""
        self._record.flush()

    def start(self, **fields: Any) -> None:
        """The attempt begins; adds versions and the machine."""
        self._record.write("start", **fields, versions=versions(), machine=machine())

    def step(
        self,
        step: int,
        epoch: int,
        lr: float,
        totals: Totals,
        split: Split,
        traffic: Traffic | None,
        scaled: Scaled | None,
        counted: Mapping[str, float],
    ) -> None:
        """One step is done and accounted for; `counted` is what else is known of it."""
        extra: dict[str, Any] = {**counted}
        if totals.grad_norm is not None:
            extra["grad_norm"] = totals.grad_norm
        if totals.weight != totals.samples:
            extra["weight"] = totals.weight
        if traffic is not None:
            extra |= _sent(traffic)
        if scaled is not None:
            extra |= {"loss_scale": scaled.factor, "overflowed": scaled.overflowed}
        self._record.write_often(
            "step",
            step=step,
            epoch=epoch,
            loss=totals.loss,
            lr=lr,
            samples=totals.samples,
            metrics=totals.metrics,
            **extra,
            **split.fields(),
        )

    def evaluate(self, step: int, epoch: int, found: Evaluation) -> None:
        """An evaluation after `step` steps."""
        self._record.write(
            "evaluate",
            step=step,
            epoch=epoch,
            loss=found.loss,
            metrics=found.metrics,
            samples=found.samples,
            sec=found.sec,
        )

    def checkpoint(self, saved: Saved) -> None:
        """A checkpoint was committed."""
        fields = {} if saved.best is None else {"best": saved.best}
        self._record.write(
            "checkpoint", step=saved.step, path=str(saved.path), sec=saved.sec, bytes=saved.bytes, **fields
        )

    def feed(self, step: int, meters: Mapping[str, Any]) -> None:
        """What the loader's stages counted since the attempt began, and which samples it skipped."""
        self._fed = time.monotonic()
        self._skipped.update()
        names = ("stages", "threads", "processes", "dropped", "padded", "skipped", "restarts")
        self._record.write("feed", step=step, **{name: meters.get(name) for name in names})

    def feed_is_due(self) -> bool:
        """Whether the meters were last written a while ago."""
        return time.monotonic() - self._fed >= _FEED_EVERY_SEC

    def loader_restarts(self, step: int, restarts: Sequence[Any]) -> None:
        """Those of a loader's replaced processes that are not written yet; `restarts` is all that it has on record."""
        for restart in restarts[self._restarts_written :]:
            fields = asdict(restart)
            fields["noticed"] = fields.pop("time")
            fields["batch"] = fields.pop("step")
            self._record.write("loader_restart", step=step, **fields)
        self._restarts_written = len(restarts)

    def guard(self, finding: Finding) -> None:
        """A guard found something."""
        self._record.write("guard", **finding.event())

    def ranks(self, step: int, p50_sec: list[float], p90_sec: list[float]) -> None:
        """How long each rank took for its own part of a step, in the median and in the 90th percentile."""
        self._record.write_often("ranks", step=step, p50_sec=p50_sec, p90_sec=p90_sec)

    def stop(self, step: int, reason: str) -> None:
        """The run stopped early, with a checkpoint."""
        self._record.write("stop", step=step, reason=reason)

    def end(self, *, traffic: Traffic | None, **fields: Any) -> None:
        """The run is complete."""
        self._record.write("end", **fields, **_sent(traffic))


def _sent(traffic: Traffic | None) -> dict[str, Any]:
    """Of gradients, by rank 0; a rank that sends none by itself says nothing."""
    return {} if traffic is None else asdict(traffic)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "headrace": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def machine() -> dict[str, Any]:
    """The machine as this process may use it; memory in bytes."""
    on_gpu = torch.cuda.is_available()
    return {
        "host": platform.node(),
        "local_ranks": local_world_size(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "devices": torch.cuda.device_count() if on_gpu else 0,
        "platform": platform.platform(),
    }
