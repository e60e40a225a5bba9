"""Gradients sent as they are, or in half the bytes."""

from __future__ import annotations

from collections.abc import Generator

import torch
import torch.distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from headrace.train.parallel.compression.wire import Wire


class Whole:
    """Sends them as they are."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def __call__(self, bucket: GradBucket, names: list[str]) -> Generator[dist.Work, None, None]:
        """Average a bucket."""
        yield self._wire.sum(bucket.buffer().div_(self._wire.size))


class Cast:
    """Sends them in a narrower type, which they are added up in too. Divided first, and in their own type: a sum over
    the ranks does not overflow where the average would not, and each number is rounded once before it is sent."""

    def __init__(self, wire: Wire, dtype: torch.dtype) -> None:
        self._wire = wire
        self._dtype = dtype

    def __call__(self, bucket: GradBucket, names: list[str]) -> Generator[dist.Work, None, None]:
        """Average a bucket."""
        buffer = bucket.buffer().div_(self._wire.size)
        narrow = buffer.to(self._dtype)
        yield self._wire.sum(narrow)
        buffer.copy_(narrow)
