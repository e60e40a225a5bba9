"""FSDP's collectives on the CPU, where whoever calls them waits: how long that took in a step.

On a GPU they run beside compute on streams of their own, and FSDP keeps its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from headrace.train.parallel.exposed import Exposed

# Their names since torch 2.13, before which they were called after what they are given.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class WaitTimer:
    """Counts a step's seconds in collectives, apart in its forward and its backward passes."""

    def __init__(self) -> None:
        self._began = self._forward_sec = self._backward_sec = 0.0

    def watch(self, modules: Sequence[FSDPModule]) -> None:
        """Take the place of what these modules gather and reduce by."""
        for module in modules:
            module.set_custom_all_gather(_Gather(self))  # type: ignore[arg-type] # its class is not exported
            module.set_custom_reduce_scatter(_Reduce(self))  # type: ignore[arg-type]

    def take(self) -> Exposed:
        """What was counted since the last call."""
        found = Exposed(self._backward_sec, forward_sec=self._forward_sec)
        self._forward_sec = self._backward_sec = 0.0
        return found

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        sec = time.perf_counter() - self._began
        if torch._C._current_graph_task_id() == -1:  # no backward pass is under way; FSDP needs no gradients in either
            self._forward_sec += sec
        else:
            self._backward_sec += sec


class _Collective:
    def __init__(self, timer: WaitTimer) -> None:
        self._timer = timer

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)


class _Gather(_Collective):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        with self._timer:
            return _all_gather(output_tensor, input_tensor, group=group, async_op=async_op)


class _Reduce(_Collective):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False) -> Any:
        with self._timer:
            return _reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
