"""Evaluation: loss and metrics over exactly the samples of a loader, each counted once.

Ranks may have shares of different size and, at the end, repeats that only even them out: repeats are cut off before
the model sees them, sums and counts are kept apart, and only at the end are they brought together and divided.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headrace.errors import LoaderError, TrainingError
from headrace.train.batches import Batch, micro_batches, num_parts, num_rows, real_rows, to_device
from headrace.train.contract import LoaderLike
from headrace.train.objective import Judgement, Objective
from headrace.train.parallel import Distributed, Mesh
from headrace.train.pipelined import PipelinedPasses
from headrace.train.world import World

Metric = Callable[[Any, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found, over all ranks."""

    loss: float | None
    """Weighted mean over all samples; None without samples."""
    metrics: dict[str, float]
    samples: int
    sec: float
    """Seconds from its start to its end, reading included."""


class Evaluator:
    """Runs the model over a loader without learning from it."""

    def __init__(
        self,
        world: World,
        distributed: Distributed,
        objective: Objective,
        loader: LoaderLike,
        metrics: Mapping[str, Metric],
        micro_batch_size: int | None,
        mesh: Mesh,
        pipelined: PipelinedPasses | None = None,
        weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`weights` puts those to be evaluated in place, while its context lasts."""
        self._world = world
        self._copies = mesh.tp
        self._pipelined = pipelined
        self._distributed = distributed
        self._objective = objective
        self._loader = loader
        self._metrics = metrics
        self._micro = micro_batch_size
        self._weights = weights
        rank_batch_size = loader.global_batch_size / mesh.data_size
        self._runs = 0 if pipelined is None else num_parts(rank_batch_size, pipelined.rows)
        self._passes = num_parts(rank_batch_size, micro_batch_size) if distributed.needs_equal_passes else 0
        self._spare: Batch | None = None

    def run(self, model: nn.Module, advance: Callable[[], object]) -> Evaluation:
        """Evaluate the model, every rank its share. Collective; the model's modes are as before afterwards.

        `advance` is called before each batch.
        """
        began = time.perf_counter()
        sums = _Sums()
        with self._weights(), evaluating(model), torch.no_grad():
            self._distributed.share(self._distributed.model.buffers())
            batches = 0
            for batch in self._loader:
                batches += 1
                advance()
                if self._pipelined is not None:
                    self._add_runs(self._pipelined, batch, sums)
                    continue
                parts = self._parts(batch)
                for part, part_rows in parts:
                    self._add(model, part, part_rows, sums)
                for _ in range(self._passes - len(parts)):
                    self._objective(model, self._spare_part(batch), 0)
            self._check_whole(batches)
            self._distributed.settle()
        means, samples = _combine(self._world.gather(sums.on_host()))
        loss = means.pop("loss", None)
        return Evaluation(loss, means, samples // self._copies, time.perf_counter() - began)

    def _add_runs(self, pipelined: PipelinedPasses, batch: Batch, sums: _Sums) -> None:
        """A batch in as many runs of the pipeline as every process makes, some perhaps of no sample."""
        real, rows = real_rows(batch)
        parts = micro_batches(to_device(real, self._world.device), rows, pipelined.rows) if rows else []
        empty = (to_device(batch, self._world.device), 0)
        for part, part_rows in parts + (self._runs - len(parts)) * [empty]:
            judged = pipelined.judgement(part, part_rows)
            if judged is not None:
                self._count(judged, part, part_rows, sums)

    def _check_whole(self, batches: int) -> None:
        """Of a rank that stopped earlier the others would wait for the model's next pass."""
        expected = self._loader.steps_per_epoch * (self._loader.epochs or 1)
        if batches != expected:
            raise LoaderError(
                f"every rank's loader must give the batches that steps_per_epoch says: the evaluation's of rank "
                f"{self._world.rank} gave {batches} of {expected}"
            )

    def _parts(self, batch: Batch) -> list[tuple[Batch, int]]:
        real, rows = real_rows(batch)
        parts = micro_batches(to_device(real, self._world.device), rows, self._micro) if rows else []
        if parts and self._passes:
            self._spare = parts[0][0]
        return parts

    def _spare_part(self, batch: Batch) -> Batch:
        """What a rank whose share is smaller than others' runs the model on, so that all call it equally often."""
        if self._spare is None:
            rows = num_rows(batch)
            if not rows:
                raise TrainingError(
                    f"rank {self._world.rank} got no sample in the first batch of the evaluation: all were filtered or "
                    "skipped; use a larger batch, or filter before streaming (ds.select)"
                )
            whole = to_device(batch, self._world.device)
            self._spare, _ = micro_batches(whole, rows, self._micro)[0]
        return self._spare

    def _add(self, model: nn.Module, part: Batch, rows: int, sums: _Sums) -> None:
        self._count(self._objective(model, part, rows), part, rows, sums)

    def _count(self, judged: Judgement, part: Batch, rows: int, sums: _Sums) -> None:
        sums.samples += rows
        for name, value in {**judged.metrics, "loss": judged.loss}.items():
            sums.add(name, value * judged.weight, judged.weight)
        for name, metric in self._metrics.items():
            sums.add(name, _per_sample(name, metric(judged.output, part), rows).sum(), rows)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model and all its parts into evaluation mode; afterwards each part has the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Sums:
    """Sums and what to divide them by, in double precision, left on the device until the end."""

    def __init__(self) -> None:
        self.samples = 0
        self._sums: dict[str, tuple[Any, Any]] = {}

    def add(self, name: str, value: Any, weight: Any) -> None:
        total, count = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = total + _double(value), count + _double(weight)

    def on_host(self) -> tuple[int, dict[str, tuple[float, float]]]:
        return self.samples, {name: (float(total), float(count)) for name, (total, count) in self._sums.items()}


def _double(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) else float(value)


def _combine(shares: list[tuple[int, dict[str, tuple[float, float]]]]) -> tuple[dict[str, float], int]:
    sums: dict[str, list[float]] = {}
    for _, share in shares:
        for name, (total, count) in share.items():
            both = sums.setdefault(name, [0.0, 0.0])
            both[0] += total
            both[1] += count
    means = {name: total / count for name, (total, count) in sums.items() if count}
    return means, sum(samples for samples, _ in shares)


def _per_sample(name: str, values: Any, rows: int) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != (rows,):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise TrainingError(
            f"metric {name!r} must return one value a sample, a tensor of shape ({rows},) here: got {found}"
        )
    return values.double()
