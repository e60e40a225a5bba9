"""What the optimizers of our own share: a step over groups of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class GroupOptimizer(Optimizer):
    """Steps group by group. Where some parameters are sharded `step` is collective."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; a closure is evaluated first, once, and what it returns is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_all()
        return loss

    def _step_all(self) -> None:
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._step(group, params)

    def _step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Move these parameters of a group, all of which have a gradient."""
        raise NotImplementedError
