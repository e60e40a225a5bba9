"""What all descriptions of optimizers have in common: groups of parameters, the making, and checks of values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer

from headrace.errors import OptionError

OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]


@runtime_checkable
class ByRole(Protocol):
    """An optimizer that must know what its parameters are for."""

    def of_model(self, model: nn.Module) -> Optimizer:
        """The optimizer over those parameters of a model that require gradients."""


def built(factory: OptimizerFactory | ByRole, model: nn.Module) -> Optimizer:
    """The optimizer of a model's trained parameters. Raises OptionError where there are none, or it is no optimizer."""
    params = trained(model)
    optimizer = factory.of_model(model) if isinstance(factory, ByRole) else factory(params)
    if not isinstance(optimizer, Optimizer):
        raise OptionError(f"optimizer(params) must return a torch optimizer: got a {type(optimizer).__name__}")
    return optimizer


def state_bytes_per_value(factory: OptimizerFactory | ByRole) -> float:
    """How many bytes an optimizer keeps for each trained value, measured on a small model of wide layers."""
    model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(3)))
    optimizer = built(factory, model)
    model(torch.ones(1, 128)).sum().backward()
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    values = sum(param.numel() for param in model.parameters())
    return sum(value.numel() * value.element_size() for value in kept) / values


def trained(model: nn.Module) -> list[Parameter]:
    """The parameters that require gradients. Raises OptionError where there are none."""
    params = [param for param in model.parameters() if param.requires_grad]
    if not params:
        raise OptionError("a model needs parameters that require gradients to be trained: this one has none")
    return params


def decay_groups(params: Iterable[Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: those of two dimensions and more with this decay, norms and biases with none.

    Parameters that are cut over processes have groups of their own beside whole ones, because no kernel takes both.
    """
    groups: dict[tuple[bool, bool], list[Parameter]] = {}
    for param in params:
        decays = bool(weight_decay) and param.dim() > 1
        groups.setdefault((not decays, isinstance(param, DTensor)), []).append(param)
    return [
        {"params": listed, "weight_decay": 0.0 if bare else weight_decay}
        for (bare, _), listed in sorted(groups.items(), key=lambda item: item[0])
    ]


def check_above_zero(**values: float) -> None:
    """Raise OptionError, naming it, for a value that is not."""
    for name, value in values.items():
        if not value > 0:
            raise OptionError(f"{name} must be above 0: got {value}")


def check_not_negative(**values: float) -> None:
    """Raise OptionError, naming it, for a value below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise OptionError(f"{name} must be at least 0: got {value}")


def check_betas(betas: tuple[float, float]) -> None:
    """Raise OptionError for decays that are not in [0, 1)."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise OptionError(f"betas must be two numbers, each at least 0 and below 1: got {betas}")
