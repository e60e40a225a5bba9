"""What the guards must know of a run: the Trainer's `Learner` says it, and so can a loop of another kind."""

from __future__ import annotations

from typing import Protocol

from torch import nn
from torch.optim import Optimizer

from headrace.train.average import Average
from headrace.train.snapshot import Kept
from headrace.train.world import World


class Learning(Protocol):
    """A model, its optimizer, and all else that goes from step to step."""

    @property
    def model(self) -> nn.Module:
        """What this process has of the model."""

    @property
    def optimizer(self) -> Optimizer:
        """Of parameters of the model."""

    @property
    def world(self) -> World:
        """The processes that learn together."""

    @property
    def others(self) -> tuple[Kept, ...]:
        """What else is kept from step to step."""

    @property
    def average(self) -> Average | None:
        """Of the weights, if there is one."""
