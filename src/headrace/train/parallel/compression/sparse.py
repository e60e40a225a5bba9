"""The largest elements of each gradient, sent with their places; what is left is added to the next one."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from headrace.train.parallel.compression.memory import Memory
from headrace.train.parallel.compression.wire import Wire


class Largest:
    """Sends the largest `ratio` of the elements of each parameter's gradient, at least one, by their size."""

    def __init__(self, wire: Wire, memory: Memory, ratio: float) -> None:
        self._wire = wire
        self._memory = memory
        self._ratio = ratio

    def __call__(self, bucket: GradBucket, names: list[str]) -> Generator[dist.Work, None, None]:
        """Average a bucket: values and places of all ranks are brought to each, which adds them in the ranks' order."""
        buffer = bucket.buffer()
        places, values, start = [], [], 0
        for name, gradient in zip(names, bucket.gradients(), strict=True):
            flat = self._memory.add_error(name, gradient.view(-1))
            largest = flat.abs().topk(math.ceil(self._ratio * flat.numel()), sorted=False).indices
            values.append(flat[largest])
            places.append(largest + start)
            self._memory.keep(name, flat.index_fill(0, largest, 0.0))
            start += flat.numel()
        work, found = self._wire.gather(_packed(torch.cat(values), torch.cat(places)))
        yield work
        buffer.zero_()
        for row in found:
            number = row.numel() // 2
            buffer.index_add_(0, row[number:], row[:number].view(torch.float32).to(buffer.dtype))
        buffer.div_(self._wire.size)


def _packed(values: Tensor, places: Tensor) -> Tensor:
    """Values in fp32 and places in int32, one behind the other as int32; a bucket has fewer than 2^31 elements."""
    return torch.cat([values.float().view(torch.int32), places.to(torch.int32)])
