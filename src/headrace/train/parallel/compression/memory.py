"""What lossy compression keeps from step to step: what a rank has not sent of each gradient, and where it stands.

An error is in the unit of the gradients that it is added to: a sum over samples by the weight of a full batch, before
the step turns it into the mean over all samples. So it counts as more samples of the step that sends it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("headrace.train")

_PREFIX = "compression."
_STEPS = f"{_PREFIX}steps"
_ERRORS = f"{_PREFIX}error."
_FACTORS = f"{_PREFIX}factor."


class Memory:
    """Errors by parameter, this rank's own; factors by parameter, the same on every rank; and the steps made."""

    def __init__(self, shapes: Mapping[str, torch.Size], rank: int, size: int) -> None:
        self.steps = 0
        self.errors: dict[str, Tensor] = {}
        self.factors: dict[str, Tensor] = {}
        self._shapes = shapes
        self._rank, self._size = rank, size

    def add_error(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient, in its own memory, with what was not sent of the last one."""
        error = self.errors.get(name)
        return gradient if error is None else gradient.add_(error.view_as(gradient))

    def keep(self, name: str, error: Tensor) -> None:
        """Keep what was not sent. What is not finite is dropped: it would come back in every step to come."""
        self.errors[name] = error.nan_to_num_(0.0, 0.0, 0.0).view(self._shapes[name])

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs, under names of which no two ranks have the same for different things."""
        found = {_STEPS: torch.tensor(self.steps)}
        found |= {f"{_FACTORS}{name}": value for name, value in self.factors.items()}
        return found | {f"{_ERRORS}{self._rank}.{name}": value for name, value in self.errors.items()}

    def room(self, entries: Mapping[str, Any]) -> dict[str, Tensor]:
        """Where what is of use of a checkpoint with these entries is to be read to.

        Errors of another number of ranks are of none: then feedback begins with nothing, and rank 0 says so.
        """
        ranks = {name.removeprefix(_ERRORS).partition(".")[0] for name in entries if name.startswith(_ERRORS)}
        if ranks and len(ranks) != self._size and self._rank == 0:
            logger.warning(
                "what %d ranks had not sent of their gradients is no use to %d: compression begins with nothing unsent",
                len(ranks),
                self._size,
            )
        mine = f"{_ERRORS}{self._rank}."
        wanted = [name for name in entries if name == _STEPS or name.startswith(_FACTORS)]
        if len(ranks) == self._size:
            wanted += [name for name in entries if name.startswith(mine)]
        return {name: torch.empty(entries[name].size, dtype=entries[name].properties.dtype) for name in wanted}

    def adopt(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from what was read into `room`."""
        mine = f"{_ERRORS}{self._rank}."
        self.steps = int(tensors[_STEPS]) if _STEPS in tensors else 0
        self.factors = {
            name.removeprefix(_FACTORS): value.to(device)
            for name, value in tensors.items()
            if name.startswith(_FACTORS)
        }
        self.errors = {
            name.removeprefix(mine): value.to(device)
            for name, value in tensors.items()
            if name.startswith(mine) and self._shapes.get(name.removeprefix(mine)) == value.shape
        }
