"""What all ranks must know of a step, in one small sum over the ranks that is on its way during the backward pass.

The numbers are the real samples, the weight, the weighted loss and metrics, and whether a rank was asked to stop. Their
sums give the exact global mean of the loss, by what the gradients must be corrected, and the one step at which all
ranks stop, for one collective of some bytes that backward hides. On a GPU the sums are fetched one step late, so that
the host never waits for the device within a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headrace.train.objective import Judgement
from headrace.train.world import World


@dataclass(slots=True)
class Totals:
    """One step over all ranks."""

    samples: int
    weight: float
    stop: bool
    loss: float | None
    """Weighted mean; None where no rank had a sample."""
    metrics: dict[str, float | None]
    grad_norm: float | None
    """Global norm before clipping; None where nobody asked for it."""

    @property
    def finite(self) -> bool:
        """Whether loss and norm are, as far as there are any."""
        loss, norm = self.loss, self.grad_norm
        return (loss is None or math.isfinite(loss)) and (norm is None or math.isfinite(norm))


class Tally:
    """Adds up one step on this rank; `launch` sends it to all."""

    __slots__ = ("_copies", "_loss", "_metrics", "_on_host", "_samples", "_weight", "_world")

    def __init__(self, world: World, copies: int = 1) -> None:
        """`copies`: how many ranks have each share of the data, and count it."""
        self._world = world
        self._copies = copies
        self._on_host = world.device.type == "cpu"
        self._samples = 0
        self._weight: Any = 0.0
        self._loss: Any = 0.0
        self._metrics: dict[str, Any] = {}

    def add(self, judged: Judgement, samples: int) -> None:
        """Count a micro-batch of `samples` real samples; 0 makes it count for nothing."""
        weight = self._scalar(judged.weight) if samples else 0.0
        self._samples += samples
        self._weight = self._weight + weight
        self._loss = self._loss + self._scalar(judged.loss) * weight
        for name, value in judged.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + self._scalar(value) * weight

    @property
    def names(self) -> list[str]:
        """The metrics that were added."""
        return sorted(self._metrics)

    def expect(self, names: list[str]) -> None:
        """Have these metrics, which other ranks add."""
        for name in names:
            self._metrics.setdefault(name, 0.0)

    def launch(self, stop: bool) -> Sum:
        """Begin summing over the ranks. Collective; every rank must have the same metrics."""
        names = self.names if self._metrics else []
        values = [self._samples, self._weight, float(stop), self._loss]
        values += [self._metrics[name] for name in names]
        if self._copies > 1:
            values = [value / self._copies for value in values]
        if self._world.size == 1 and self._on_host:
            return Sum(names, values, None, None, self._loss)
        vector = self._vector(values)
        work = dist.all_reduce(vector, async_op=True) if self._world.size > 1 else None
        return Sum(names, None, vector, work, self._loss)

    def _scalar(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return float(value)
        return value.item() if self._on_host else value.detach().double()

    def _vector(self, values: list[Any]) -> Tensor:
        device = self._world.device
        if self._on_host:
            return torch.tensor(values, dtype=torch.float64)
        return torch.stack(
            [v if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=device) for v in values]
        )


class Sum:
    """A sum over the ranks, on its way."""

    __slots__ = ("_fetched", "_names", "_norm", "_own_loss", "_totals", "_values", "_vector", "_work")

    def __init__(
        self,
        names: list[str],
        values: list[float] | None,
        vector: Tensor | None,
        work: dist.Work | None,
        own_loss: Any,
    ) -> None:
        self._names = names
        self._values = values
        self._vector = vector
        self._work = work
        self._own_loss = own_loss
        self._norm: Tensor | None = None
        self._fetched: torch.cuda.Event | None = None
        self._totals: Totals | None = None

    def wait(self) -> None:
        """Wait for the other ranks: on CPU the process waits, on a GPU its stream."""
        if self._work is not None:
            self._work.wait()
        if self._vector is not None and self._vector.device.type == "cpu":
            self._values = self._vector.tolist()

    def weight(self) -> float | Tensor:
        """The total weight, once waited for: a number on CPU, still on the device on a GPU."""
        if self._values is not None:
            return self._values[1]
        assert self._vector is not None
        return self._vector[1]

    def own_loss(self) -> float:
        """This rank's own weighted loss."""
        return float(self._own_loss)

    def finite(self, grad_norm: Tensor | None) -> bool | Tensor:
        """Whether the loss is, and the norm if any, once waited for: on a GPU the answer is on the device."""
        if self._values is not None:
            return math.isfinite(self._values[3]) and (grad_norm is None or math.isfinite(grad_norm.item()))
        assert self._vector is not None
        finite = self._vector[3].isfinite()
        return finite if grad_norm is None else finite & grad_norm.isfinite()

    def fetch(self, grad_norm: Tensor | None) -> None:
        """Start bringing the sums and the norm to the host."""
        self._norm = grad_norm
        if self._values is None:
            assert self._vector is not None
            parts = [self._vector] if grad_norm is None else [self._vector, grad_norm.double().reshape(1)]
            self._vector = torch.cat(parts).to("cpu", non_blocking=True)
            self._fetched = torch.cuda.Event()
            self._fetched.record()

    def totals(self) -> Totals:
        """The sums, once fetched; waits for the device if they are still on their way."""
        if self._totals is None:
            self._totals = self._read()
        return self._totals

    def _read(self) -> Totals:
        norm = None
        if self._fetched is not None:
            assert self._vector is not None
            self._fetched.synchronize()
            self._values = self._vector.tolist()
            norm = None if self._norm is None else self._values.pop()
        elif self._norm is not None:
            norm = self._norm.item()
        assert self._values is not None
        samples, weight, stop, *sums = self._values
        loss, *means = [value / weight if weight else None for value in sums]
        return Totals(round(samples), weight, stop > 0, loss, dict(zip(self._names, means, strict=True)), norm)
