"""Muon (Jordan et al. 2024): hidden matrices move by orthogonal steps; everything else is AdamW's."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from headrace.errors import OptionError
from headrace.train.dtensors import part, part_like, place, whole
from headrace.train.optimizers.base import GroupOptimizer
from headrace.train.optimizers.groups import (
    check_above_zero,
    check_betas,
    check_not_negative,
    decay_groups,
    trained,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon:
    """For the matrices between the layers of a model; embeddings, the output layer, norms and biases are AdamW's.

    One value of state a parameter, two of AdamW's. Where parameters are sharded a step gathers each matrix.
    """

    lr: float = 1e-3
    """Learning rate of all, above 0: Muon's steps are as large as AdamW's. A schedule multiplies it."""
    momentum: float = 0.95
    """Decay of the running sum of gradients, in [0, 1)."""
    weight_decay: float = 0.1
    """Share of lr by which weights shrink each step; 0: none. Norms and biases have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""

    def __post_init__(self) -> None:
        check_above_zero(lr=self.lr)
        check_not_negative(weight_decay=self.weight_decay)
        check_betas(self.betas)
        if not 0 <= self.momentum < 1:
            raise OptionError(f"momentum must be at least 0 and below 1: got {self.momentum}")

    def of_model(self, model: nn.Module) -> Optimizer:
        """The optimizer over a model's trained parameters. Raises OptionError for a model without hidden matrices."""
        hidden = hidden_matrices(model)
        if not hidden:
            raise OptionError(
                "Muon is for the matrices between the first and the last layer of a model: this one has none; take "
                "adamw()"
            )
        ours = {id(param) for param in hidden}
        others = [param for param in trained(model) if id(param) not in ours]
        optimizers: list[Optimizer] = [
            MuonOptimizer(hidden, {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay})
        ]
        if others:
            groups = decay_groups(others, self.weight_decay)
            optimizers.append(torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True))
        return Together(optimizers)


def muon(
    lr: float = 1e-3,
    momentum: float = 0.95,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> Muon:
    """Muon for the Trainer's `optimizer`.

    >>> muon(lr=2e-3)
    Muon(lr=0.002, momentum=0.95, weight_decay=0.1, betas=(0.9, 0.95))
    """
    return Muon(lr=lr, momentum=momentum, weight_decay=weight_decay, betas=betas)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of two dimensions, without embeddings and the last linear layer."""
    outer = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    outer |= {id(module.weight) for module in linear[-1:]}
    return [param for param in trained(model) if param.dim() == 2 and id(param) not in outer]


class MuonOptimizer(GroupOptimizer):
    """For matrices; as `torch.optim.Muon` with Nesterov's momentum and `match_rms_adamw`.

    Each rank makes the whole step of a sharded matrix and takes its part: in bfloat16 the parts' own arithmetic would
    give another step on every mesh. `step` is collective then.
    """

    def __init__(self, params: Iterable[nn.Parameter], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def _step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for param in params:
            self._move(group, param)

    def _move(self, group: dict[str, Any], param: Tensor) -> None:
        assert param.grad is not None
        weight, gradient = part(param), part(param.grad)
        kept = self.state[param].setdefault("momentum_buffer", torch.zeros_like(param))
        momentum = part(kept).lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(momentum, group["momentum"])
        step = orthogonal(whole(part_like(param, ahead)))[place(param)]
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.sub_(step, alpha=group["lr"] * 0.2 * math.sqrt(max(param.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix with its singular values near 1, bfloat16: five Newton-Schulz steps with Jordan's coefficients."""
    a, b, c = 3.4445, -4.775, 2.0315
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16().T if is_tall else matrix.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Together(GroupOptimizer):
    """Several optimizers of one model's parameters as one. Their groups are its own, and their state."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self._optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.param_groups = groups
        self._share()

    def _step_all(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Each works on our own groups and state, so that a rate that is set here, and what is saved, are theirs."""
        first = 0
        for optimizer in self._optimizers:
            count = len(optimizer.param_groups)
            optimizer.param_groups = self.param_groups[first : first + count]
            optimizer.state = self.state
            first += count
