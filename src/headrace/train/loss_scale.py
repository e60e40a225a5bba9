"""Loss scaling for fp16, whose smallest number is 6e-8: the loss is multiplied so that small gradients are not lost.

The factor is found out by overflow, as torch.amp.GradScaler does: a step whose gradients are not all finite is left out
and halves it, 2,000 steps without one double it. Gradients are divided by it before anything else is done to them.
All ranks take the same decision: replicas because their gradients are the same, others because they ask each other. On
a GPU the host waits for it once a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headrace.errors import TrainingError
from headrace.train.world import World

_FIRST = 2.0**16
_LEAST = 2.0**-14
_PATIENCE = 2_000
_NAME = "loss_scale"


@dataclass(frozen=True, slots=True)
class Scaled:
    """What came of the scaling of a step's loss."""

    factor: float
    """By which the loss of this step was multiplied."""
    overflowed: bool
    """Whether gradients were not finite, so that nothing was learnt."""


class LossScale:
    """The factor, and what it was in the steps before."""

    def __init__(self, world: World, replicas: bool) -> None:
        """`replicas`: every rank has all gradients, so no rank need ask the others."""
        self.factor = _FIRST
        self._world = world
        self._asks = not replicas and world.size > 1
        self._streak = 0

    def unscale(self, grads: Sequence[Tensor]) -> Scaled:
        """Divide this rank's gradients by the factor, and find the next one. Collective, except among replicas.

        Raises TrainingError, on all ranks, when gradients overflow however small the factor is.
        """
        overflowed = self._divide(grads)
        scaled = Scaled(self.factor, overflowed)
        self._streak = 0 if overflowed else self._streak + 1
        if overflowed:
            self.factor /= 2
        elif self._streak == _PATIENCE:
            self.factor, self._streak = self.factor * 2, 0
        if self.factor < _LEAST:
            raise TrainingError(
                "gradients must fit into fp16: some are not finite even when the loss is multiplied by "
                f"{scaled.factor:g}; look for a division by 0 in the model, or say precision='bf16'"
            )
        return scaled

    def _divide(self, grads: Sequence[Tensor]) -> bool:
        """Whether a gradient is not finite, on any rank."""
        device = self._world.device
        found = torch.zeros((), device=device)
        if grads:
            inverse = torch.full((), 1 / self.factor, device=device)
            torch._amp_foreach_non_finite_check_and_unscale_(list(grads), found, inverse)
        if self._asks:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found.item())

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs of it."""
        return {_NAME: torch.tensor([self.factor, self._streak], dtype=torch.float64)}

    def room(self, entries: Mapping[str, Any]) -> dict[str, Tensor]:
        """Where it wants what a checkpoint with these entries holds of it."""
        return {_NAME: torch.empty(2, dtype=torch.float64)} if _NAME in entries else {}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what was read into `room`; from the first factor where the run was of another precision."""
        factor, streak = tensors[_NAME].tolist() if _NAME in tensors else (_FIRST, 0)
        self.factor, self._streak = factor, int(streak)
