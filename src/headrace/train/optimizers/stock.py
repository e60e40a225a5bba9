"""Those that torch has: AdamW and stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from headrace.errors import OptionError
from headrace.train.optimizers.groups import (
    check_above_zero,
    check_betas,
    check_not_negative,
    decay_groups,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019). Two values of state a parameter."""

    lr: float = 3e-4
    """Learning rate, above 0; a schedule multiplies it."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square; each in [0, 1)."""
    weight_decay: float = 0.01
    """Share of lr by which weights shrink each step; 0: none. Norms and biases have none."""
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_above_zero(lr=self.lr, eps=self.eps)
        check_not_negative(weight_decay=self.weight_decay)
        check_betas(self.betas)

    def __call__(self, params: Iterable[Parameter]) -> Optimizer:
        """The optimizer over these parameters; one fused kernel a step."""
        groups = decay_groups(params, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """Stochastic gradient descent; with momentum one value of state a parameter."""

    lr: float
    """Learning rate, above 0; a schedule multiplies it."""
    momentum: float = 0.0
    """Decay of the running sum of gradients, in [0, 1); 0: none."""
    weight_decay: float = 0.0
    """Factor of the weights that is added to their gradient; 0: none. Norms and biases have none."""
    nesterov: bool = False
    """Look ahead along the momentum; needs momentum above 0."""

    def __post_init__(self) -> None:
        check_above_zero(lr=self.lr)
        check_not_negative(weight_decay=self.weight_decay)
        if not 0 <= self.momentum < 1:
            raise OptionError(f"momentum must be at least 0 and below 1: got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise OptionError("nesterov=True needs momentum: got momentum=0; set momentum=0.9, or nesterov=False")

    def __call__(self, params: Iterable[Parameter]) -> Optimizer:
        """The optimizer over these parameters."""
        groups = decay_groups(params, self.weight_decay)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


def adamw(
    lr: float = 3e-4, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.01, eps: float = 1e-8
) -> AdamW:
    """AdamW for the Trainer's `optimizer`.

    >>> adamw(lr=1e-3)
    AdamW(lr=0.001, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-08)
    """
    return AdamW(lr=lr, betas=betas, weight_decay=weight_decay, eps=eps)


def sgd(lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False) -> SGD:
    """SGD for the Trainer's `optimizer`.

    >>> sgd(0.1, momentum=0.9)
    SGD(lr=0.1, momentum=0.9, weight_decay=0.0, nesterov=False)
    """
    return SGD(lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
