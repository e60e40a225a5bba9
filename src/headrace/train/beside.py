"""What goes on beside a run's steps, in threads of its own: the look at the machine, alarms, traces."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from headrace.alarms import Alarms, Watcher
from headrace.telemetry import EventWriter, HostMeter
from headrace.train.clock import Clock
from headrace.train.profiling.options import Profile
from headrace.train.profiling.tracer import FOLDER, Tracer, Written
from headrace.train.record import Record


@contextmanager
def watching(record: Record, alarms: Alarms | None) -> Iterator[None]:
    """While the block runs, what the machine is busy with is recorded, and alarms ring; where rank 0 records at all."""
    if not isinstance(record, EventWriter):
        yield
        return
    with HostMeter(record.write), nullcontext() if alarms is None else Watcher(alarms, record):
        yield


def tracing(
    run_dir: Path | None, rank: int, profile: Profile | None, clock: Clock, step: Callable[[], int], record: Record
) -> AbstractContextManager[object]:
    """A context in which steps are traced, those of the profile, or those after a signal; without a folder none."""
    if run_dir is None:
        return nullcontext()
    due = profile if profile is not None and (rank == 0 or profile.all_ranks) else None
    return Tracer(run_dir / FOLDER, rank, clock, step, due, partial(_keep, record))


def _keep(record: Record, written: Written) -> None:
    print(f"profile {written.path}: {written.sentence}", file=sys.stderr, flush=True)
    steps = {"step": written.last_step, "first_step": written.first_step}
    record.write("profile", **steps, path=str(written.path), sentence=written.sentence)
