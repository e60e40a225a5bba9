"""What is to be made: a rank's batches, and the runs that they are made of, in order and without end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.load.job import Job
from headrace.load.runs import PlannedRun
from headrace.order import Places

PLANNED_SAMPLES = 8192


@dataclass(frozen=True, slots=True)
class Plan:
    """One batch to be made."""

    epoch: int
    step: int
    positions: NDArray[np.int64]
    real: NDArray[np.bool_]
    has_repeats: bool
    """Whether a rank, not necessarily this one, has repeats in this step."""
    places: Places
    stop: int
    """Position (counted over epochs) after its last."""


def planned_runs(
    job: Job, first_epoch: int, first_position: int, share: int = 0, num_shares: int = 1
) -> Iterator[PlannedRun]:
    """The runs that this rank needs from a position on, over all epochs to come; or a share of them (`shares_of`)."""
    batches, num_samples = job.batches, job.batches.num_samples
    which = batches.rank + batches.world_size * share, batches.world_size * num_shares
    if batches.rank >= num_samples:
        return  # it has repeats only, which are read one by one
    for epoch in itertools.count(first_epoch):
        start = first_position if epoch == first_epoch else 0
        base = epoch * num_samples
        for run in job.order.epoch(epoch).runs(*which, start, batches.stop):
            yield PlannedRun((epoch, run.id), run, base + run.need, base + run.done)


def plans(job: Job, first_epoch: int, first_step: int) -> Iterator[Plan]:
    """The batches from a step on, planned some thousand samples at a time."""
    batches = job.batches
    steps_at_once = max(1, PLANNED_SAMPLES * batches.world_size // batches.global_batch_size)
    for epoch in itertools.count(first_epoch):
        order = job.order.epoch(epoch)
        for first in range(first_step if epoch == first_epoch else 0, batches.num_steps, steps_at_once):
            last = min(first + steps_at_once, batches.num_steps)
            positions, real, sizes = batches.positions(first, last)
            places = order.locate(positions)
            ends = np.cumsum(sizes).tolist()
            for step, size, end in zip(range(first, last), sizes, ends, strict=True):
                part = slice(end - size, end)
                stop = (step + 1) * batches.global_batch_size if step + 1 < batches.num_steps else batches.num_samples
                yield Plan(
                    epoch,
                    step,
                    positions[part],
                    real[part],
                    batches.has_repeats(step),
                    Places(places.piece[part], places.sample[part], places.run[part]),
                    epoch * batches.num_samples + stop,
                )


def can_share(job: Job) -> bool:
    """Whether the rank's partitions can be dealt to the job's processes, each of which reads its own by itself."""
    return job.processes > 1 and job.order.shuffle and job.order.partitions >= job.batches.world_size * job.processes


def shares_of(job: Job, plan: Plan) -> NDArray[np.int64]:
    """Which share each row belongs to: a rank's partitions go round them. Repeats, which no share plans, go to one."""
    turns = (plan.positions % job.order.partitions - job.batches.rank) // job.batches.world_size
    return np.where(plan.real, turns % job.processes, 0)
