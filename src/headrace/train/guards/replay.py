"""The same micro-batch, computed twice: a device whose arithmetic is sound gives the same bits.

Nothing of it is seen by the training: buffers and random generators are put back, and gradients are asked for apart
from those that are reduced. Where kernels add up in no fixed order (some do on a GPU), bits differ without a fault;
torch's deterministic algorithms are to be on there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from headrace.train.guards.replicas import same_bits
from headrace.train.randomness import random_state, set_random_state


def repeats(compute: Callable[[], list[Tensor]], model: nn.Module, device: torch.device) -> bool:
    """Whether two calls of `compute`, a forward and a backward pass through the model, give the same bits."""
    before, buffers = random_state(device), [buffer.clone() for buffer in model.buffers()]

    def again() -> list[Tensor]:
        results = [result.clone() for result in compute()]
        _put_back(model, buffers)
        set_random_state(before, device)
        return results

    first, second = again(), again()
    return all(map(same_bits, first, second))


@torch.no_grad()
def _put_back(model: nn.Module, buffers: list[Any]) -> None:
    for live, kept in zip(model.buffers(), buffers, strict=True):
        live.copy_(kept)
