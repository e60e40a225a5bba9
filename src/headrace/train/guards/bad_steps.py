"""Steps whose loss or gradients are not finite: whose fault, how many in a row, and the learning rate's answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.errors import TrainingError
from headrace.train.batches import Batch, num_rows
from headrace.train.guards.finding import Finding, Note
from headrace.train.guards.options import Guards
from headrace.train.tally import Totals
from headrace.train.world import World

_LEAST_FACTOR = 1 / 64
_MOST_KEYS = 8


@dataclass(frozen=True, slots=True)
class Culprit:
    """A rank whose own loss was not finite."""

    rank: int
    keys: list[str]
    """Of its samples with a value that is not finite; of its whole batch where there are none. The first 8."""

    def __str__(self) -> str:
        return f"rank {self.rank}" + (f" (samples {', '.join(self.keys)})" if self.keys else "")


class BadSteps:
    """Counts bad steps, and holds the factor of the learning rate that they leave behind."""

    def __init__(self, options: Guards, world: World, note: Note) -> None:
        self.factor = 1.0
        """What the schedule's learning rate is to be multiplied by."""
        self._options = options
        self._growth = (1 / options.back_off) ** (1 / options.recovery_steps)
        self._world = world
        self._note = note
        self._in_a_row = 0

    def good(self) -> None:
        """A step was finite."""
        self._in_a_row = 0
        if self.factor < 1.0:
            self.factor = min(1.0, self.factor * self._growth)

    def bad(self, step: int, totals: Totals, own_loss: float, batch: Batch) -> None:
        """A step was not, and was left out. Collective. Raises TrainingError after too many in a row."""
        self._in_a_row += 1
        self.factor = max(_LEAST_FACTOR, self.factor * self._options.back_off)
        culprits = find_culprits(self._world, own_loss, batch)
        name = "loss" if totals.loss is not None and not math.isfinite(totals.loss) else "gradient"
        detail = f"the {name} is not finite: " + told(culprits)
        last = self._in_a_row >= self._options.max_bad_steps
        action = "the run ends" if last else f"step skipped, learning rate times {self.factor:.3g}"
        ranks, keys = [culprit.rank for culprit in culprits], [culprit.keys for culprit in culprits]
        self._note(Finding("finite", step, action, detail, {"ranks": ranks, "keys": keys, "factor": self.factor}))
        if last:
            raise TrainingError(
                f"fewer than {self._options.max_bad_steps} steps in a row may be bad: steps "
                f"{step - self._in_a_row + 1} to {step} were, and in the last {detail}; "
                "lower the learning rate, or look for broken samples"
            )

    def state_dict(self) -> dict[str, Any]:
        """A JSON value, the same on every rank."""
        return {"factor": self.factor, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved one."""
        self.factor, self._in_a_row = float(state["factor"]), int(state["in_a_row"])


def find_culprits(world: World, own_loss: float, batch: Batch) -> list[Culprit]:
    """The ranks whose own loss is not finite, and their samples. Collective."""
    keys = None if math.isfinite(own_loss) else broken_keys(batch)
    return [Culprit(rank, found) for rank, found in enumerate(world.gather(keys)) if found is not None]


def told(culprits: Sequence[Culprit]) -> str:
    """Them in words."""
    if not culprits:
        return "the loss is finite on every rank"
    return f"the loss of {' and '.join(map(str, culprits))} is not"


def broken_keys(batch: Batch) -> list[str]:
    """Keys of the samples that have a value which is not finite; of all where none has. At most 8."""
    keys = batch.get("__key__")
    if keys is None:
        return []
    rows = num_rows(batch)
    broken = torch.zeros(rows, dtype=torch.bool)
    for value in batch.values():
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() and len(value) == rows:
            broken |= (~value.isfinite()).reshape(rows, -1).any(1).cpu()
    named = [str(key) for key, bad in zip(keys, broken.tolist(), strict=True) if bad]
    return (named or [str(key) for key in keys])[:_MOST_KEYS]
