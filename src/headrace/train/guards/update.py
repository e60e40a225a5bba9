"""The optimizer's step, made only if loss and gradients are finite.

On the CPU the answer is known when the step is due. On a GPU it lies on the device, and waiting for it in every step
would let the device run dry; a fused optimizer takes it there and leaves everything as it was, which is how torch's
GradScaler skips a step. An optimizer that cannot do that is given the answer by the host, once the device has it; so is
one whose steps something follows, such as an average of the weights, which must not see a step that was left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer


def step_if(optimizer: Optimizer, finite: bool | Tensor) -> None:
    """Step where `finite`, a bool or a tensor of no dimension on the parameters' device, is true."""
    if isinstance(finite, Tensor):
        if _takes_mask(optimizer):
            _masked(optimizer, finite)
            return
        finite = bool(finite)
    if finite:
        optimizer.step()


def _takes_mask(optimizer: Any) -> bool:
    sharded = any(isinstance(param, DTensor) for group in optimizer.param_groups for param in group["params"])
    followed = bool(optimizer._optimizer_step_post_hooks)
    return not sharded and not followed and getattr(optimizer, "_step_supports_amp_scaling", False)


def _masked(optimizer: Any, finite: Tensor) -> None:
    optimizer.grad_scale, optimizer.found_inf = None, (~finite).float()
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf


class RunningStatistics:
    """Those of the model's normalisations, which a forward pass changes before anybody knows whether it was finite."""

    def __init__(self, model: nn.Module) -> None:
        self._live = list(_buffers(model))
        self._kept = [buffer.clone() for buffer in self._live]

    def keep(self) -> None:
        """Before the step's first forward pass."""
        if self._live:
            torch._foreach_copy_(self._kept, self._live)

    def settle(self, finite: bool | Tensor) -> None:
        """After the step's last forward pass: as they were, unless it was finite."""
        if finite is True or not self._live:
            return
        for live, kept in zip(self._live, self._kept, strict=True):
            live.copy_(torch.where(finite, live, kept) if isinstance(finite, Tensor) else kept)


def _buffers(model: nn.Module) -> Iterable[Tensor]:
    for module in model.modules():
        if isinstance(module, _NormBase):
            yield from module.buffers(recurse=False)
