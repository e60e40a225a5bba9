"""LAMB (You et al. 2020, "Large Batch Optimization for Deep Learning"): Adam's step, scaled to each layer's weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from headrace.train.dtensors import part, squared_norms
from headrace.train.optimizers.base import GroupOptimizer
from headrace.train.optimizers.groups import (
    check_above_zero,
    check_betas,
    check_not_negative,
    decay_groups,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LAMB:
    """For batches of thousands of samples, with a warm-up. Two values of state a parameter."""

    lr: float = 1e-3
    """Learning rate, above 0: the share of its own norm by which a layer moves a step; a schedule multiplies it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square; each in [0, 1)."""
    weight_decay: float = 0.01
    """Factor of the weights that is added to the step; 0: none. Norms and biases have none."""
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_above_zero(lr=self.lr, eps=self.eps)
        check_not_negative(weight_decay=self.weight_decay)
        check_betas(self.betas)

    def __call__(self, params: Iterable[Parameter]) -> Optimizer:
        """The optimizer over these parameters."""
        groups = decay_groups(params, self.weight_decay)
        return LAMBOptimizer(groups, {"lr": self.lr, "betas": self.betas, "eps": self.eps})


def lamb(
    lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.01, eps: float = 1e-6
) -> LAMB:
    """LAMB for the Trainer's `optimizer`.

    >>> lamb(lr=4e-3).lr
    0.004
    """
    return LAMB(lr=lr, betas=betas, weight_decay=weight_decay, eps=eps)


class LAMBOptimizer(GroupOptimizer):
    """Algorithm 2 of the paper, with its correction of the means' bias; phi is the identity.

    Parameters of one dimension (norms, biases) take Adam's step as it is, as the authors' own program has it. Where
    some are sharded `step` is collective.
    """

    def __init__(self, params: Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(params, {"weight_decay": 0.0, **defaults})

    def _step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        weights = [part(param) for param in params]
        updates = self._adam(group, params)
        if group["weight_decay"]:
            torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        matrices = [number for number, param in enumerate(params) if param.dim() > 1]
        if matrices:
            shaped = [params[number] for number in matrices]
            norms = squared_norms([weights[number] for number in matrices], shaped)
            lengths = squared_norms([updates[number] for number in matrices], shaped)
            ratios = torch.where((norms > 0) & (lengths > 0), (norms / lengths).sqrt(), 1.0)
            for number, ratio in zip(matrices, ratios.unbind(), strict=True):
                updates[number].mul_(ratio)
        torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _adam(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """This rank's parts of Adam's steps, not yet multiplied by the learning rate."""
        beta1, beta2 = group["betas"]
        for param in params:
            state = self.state[param]
            if not state:
                state |= {"step": 0, "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
            state["step"] += 1
        steps = [self.state[param]["step"] for param in params]
        means = [part(self.state[param]["exp_avg"]) for param in params]
        squares = [part(self.state[param]["exp_avg_sq"]) for param in params]
        gradients = [part(param.grad) for param in params if param.grad is not None]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [math.sqrt(1 - beta2**step) for step in steps])
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        torch._foreach_div_(updates, [1 - beta1**step for step in steps])
        return list(updates)
