"""Adafactor (Shazeer and Stern 2018): Adam's step from second moments that are kept as rows and columns only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from headrace.errors import OptionError
from headrace.train.dtensors import part, part_like, place, squared_norms, whole
from headrace.train.optimizers.base import GroupOptimizer
from headrace.train.optimizers.groups import check_above_zero, check_not_negative, decay_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Adafactor:
    """For models whose optimizer state does not fit: of a matrix of n x m it keeps n + m values."""

    lr: float = 1e-2
    """Learning rate, above 0, relative to the root mean square of each parameter; at most 1 / sqrt(step) is taken."""
    beta2_decay: float = -0.8
    """The decay of the second moments at step t is 1 - t^beta2_decay; at most 0."""
    weight_decay: float = 0.0
    """Share of lr by which weights shrink each step; 0: none. Norms and biases have none."""
    clipping: float = 1.0
    """Largest root mean square of a step before it is multiplied by the rate."""
    eps: float = 1e-3
    """Least root mean square that a parameter is taken to have, so that those that begin at 0 move."""

    def __post_init__(self) -> None:
        check_above_zero(lr=self.lr, clipping=self.clipping, eps=self.eps)
        check_not_negative(weight_decay=self.weight_decay)
        if not self.beta2_decay <= 0:
            raise OptionError(f"beta2_decay must be at most 0: got {self.beta2_decay}")

    def __call__(self, params: Iterable[Parameter]) -> Optimizer:
        """The optimizer over these parameters."""
        groups = decay_groups(params, self.weight_decay)
        names = ("lr", "beta2_decay", "clipping", "eps")
        return AdafactorOptimizer(groups, {name: getattr(self, name) for name in names})


def adafactor(
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    weight_decay: float = 0.0,
    clipping: float = 1.0,
    eps: float = 1e-3,
) -> Adafactor:
    """Adafactor for the Trainer's `optimizer`.

    >>> adafactor().clipping
    1.0
    """
    return Adafactor(lr=lr, beta2_decay=beta2_decay, weight_decay=weight_decay, clipping=clipping, eps=eps)


class AdafactorOptimizer(GroupOptimizer):
    """Algorithms 4 and 5 of the paper without momentum, as `torch.optim.Adafactor` has them, which takes no DTensor.

    Rows and columns lie whole on every rank. Where some parameters are sharded `step` is collective.
    """

    def __init__(self, params: Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(params, {"weight_decay": 0.0, **defaults})

    def _step(self, group: dict[str, Any], params: list[Tensor]) -> None:
        weights = [part(param) for param in params]
        sizes = torch.tensor([param.numel() for param in params], device=weights[0].device)
        scale = (squared_norms(weights, params) / sizes).sqrt_().clamp_(min=group["eps"])
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        updates = [self._update(group, param) for param in params]
        excess = (squared_norms(updates, params) / sizes).sqrt_().div_(group["clipping"]).clamp_(min=1.0)
        for param, weight, update, factor in zip(params, weights, updates, (scale / excess).unbind(), strict=True):
            rate = min(group["lr"], self.state[param]["step"] ** -0.5)
            weight.sub_(update.mul_(factor * rate))

    def _update(self, group: dict[str, Any], param: Tensor) -> Tensor:
        """This rank's part of the gradient over the root of its second moment."""
        assert param.grad is not None
        state = self.state[param]
        state["step"] = state.get("step", 0) + 1
        mixed = state["step"] ** group["beta2_decay"]
        gradient = part(param.grad)
        if param.dim() > 1:
            rows, columns = self._factors(param, mixed)
            rows, columns, at = rows.unsqueeze(-1), columns.unsqueeze(-2), place(param)
            mean = rows.mean(-2, keepdim=True).clamp_(min=_tiny(param))
            above = (slice(None) if size == 1 else cut for size, cut in zip(mean.shape, at, strict=True))
            estimate = rows[(*at[:-1], slice(None))] @ columns[(*at[:-2], slice(None), at[-1])]
            estimate.div_(mean[tuple(above)])
        else:
            square = gradient.square()
            kept = state.setdefault("variance", torch.zeros_like(param))
            estimate = part(kept).lerp_(square, mixed).clone()
        return estimate.clamp_(min=_tiny(param) ** 2).rsqrt_().mul_(gradient)

    def _factors(self, param: Tensor, mixed: float) -> tuple[Tensor, Tensor]:
        """Running means of the squared gradient over its last dimension, and over the one before."""
        assert param.grad is not None
        state = self.state[param]
        squares = part_like(param.grad, part(param.grad).square())
        for name, dim in (("row_var", -1), ("col_var", -2)):
            found = whole(squares.sum(dim)).div_(param.shape[dim])
            state.setdefault(name, torch.zeros_like(found)).lerp_(found, mixed)
        return state["row_var"], state["col_var"]


def _tiny(param: Tensor) -> float:
    return float(torch.finfo(param.dtype).eps)
