"""Averaging the gradients of a backward pass over the ranks, bucket by bucket, while it runs.

A way to do it (`Average`) is a generator over one bucket: it yields each collective that it has begun, and goes on when
that is done; what it leaves in the bucket is the average. All of them are moved on by the thread of the backward pass,
at the same buckets on every rank, so ranks begin the same collectives in the same order. (The hook for PowerSGD that
comes with torch begins its second and third from callbacks, whose order on gloo is that of its threads.) What is kept
from step to step is kept by parameter, not by bucket: DistributedDataParallel makes its buckets anew after the first
step of a process, so after a restart a bucket is no longer what it was. Torch's hook keeps it by bucket.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from headrace.train.parallel.compression.cast import Cast, Whole
from headrace.train.parallel.compression.low_rank import LowRank
from headrace.train.parallel.compression.memory import Memory
from headrace.train.parallel.compression.options import Compression, PowerSgd, TopK
from headrace.train.parallel.compression.sparse import Largest
from headrace.train.parallel.compression.wire import Traffic, Wire
from headrace.train.world import World


class Average(Protocol):
    """A way to average a bucket."""

    def __call__(self, bucket: GradBucket, names: list[str]) -> Generator[dist.Work, None, None]:
        """Average it; `names` are those of its parameters."""


class _Flight:
    """A bucket on its way."""

    def __init__(self, steps: Generator[dist.Work, None, None], buffer: Tensor) -> None:
        self._steps = steps
        self._buffer = buffer
        self._work: dist.Work | None = next(steps)
        on_device = buffer.device.type != "cpu"
        self.future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[buffer.device] if on_device else None)

    def go_on(self) -> None:
        if self._work is None:
            return
        self._work.wait()
        self._work = next(self._steps, None)
        if self._work is None:
            self.future.set_result(self._buffer)


class Reducer:
    """How one run averages gradients; knows what it sent, and what it keeps for the next step."""

    def __init__(self, compression: Compression | None, model: nn.Module, world: World) -> None:
        params = dict(model.named_parameters())
        self._names = {id(param): name for name, param in params.items()}
        self._device = world.device
        self._wire = Wire()
        self._memory = Memory({name: param.shape for name, param in params.items()}, world.rank, world.size)
        self._feeds_back = isinstance(compression, PowerSgd | TopK)
        self._warmup = compression.warmup_steps if isinstance(compression, PowerSgd | TopK) else 0
        self._whole = Whole(self._wire)
        self._average = self._chosen(compression)
        # A second collective waits for the first, so it is begun with the next bucket; one alone may wait for the end.
        self._eager = isinstance(compression, PowerSgd)
        self._flights: list[_Flight] = []

    def _chosen(self, compression: Compression | None) -> Average:
        if isinstance(compression, PowerSgd):
            return LowRank(self._wire, self._memory, compression.rank)
        if isinstance(compression, TopK):
            return Largest(self._wire, self._memory, compression.ratio)
        if compression is None:
            return self._whole
        return Cast(self._wire, {"bf16": torch.bfloat16, "fp16": torch.float16}[compression])

    def reduce(self, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Begin averaging a bucket. To be called with all buckets of a backward pass, in their order."""
        if self._eager:
            for flight in self._flights:
                flight.go_on()
        self._wire.carry(bucket.buffer())
        average = self._average if self._memory.steps >= self._warmup else self._whole
        names = [self._names[id(param)] for param in bucket.parameters()]
        flight = _Flight(average(bucket, names), bucket.buffer())
        self._flights.append(flight)
        if bucket.is_last():
            self._end()
        return flight.future

    def _end(self) -> None:
        while self._flights:
            for flight in self._flights:
                flight.go_on()
            self._flights = [flight for flight in self._flights if not flight.future.done()]
        self._memory.steps += 1

    def take(self) -> Traffic | None:
        """What was sent since the last call; None: nothing was."""
        return self._wire.take()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs of it; live ones."""
        return self._memory.tensors() if self._feeds_back else {}

    def room(self, entries: Mapping[str, Any]) -> dict[str, Tensor]:
        """Where it wants what a checkpoint with these entries holds of it."""
        return self._memory.room(entries) if self._feeds_back else {}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what was read into `room`."""
        self._memory.adopt(tensors, self._device)
