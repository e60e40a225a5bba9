"""Copies of the state in host memory, to which a run can go back at once, without a file and without a word to others.

A copy has this rank's part of the trained parameters, all buffers, the optimizer's state, the averaged weights and what
else is kept from step to step (`Kept`): with AdamW in fp32 12 bytes a parameter, 16 with an average. Two are kept, a
period apart, because the newest may be of a model that is damaged already: one that is younger than a few steps is
passed over for the one before. On a GPU copies go to pinned memory in the stream's own order, so the host does not wait
for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headrace.train.average import Average
from headrace.train.dtensors import part
from headrace.train.guards.learning import Learning
from headrace.train.snapshot import Kept

_LEAST_AGE = 10
"""Steps that a state must have proved itself for."""

Name = tuple[str, ...]

_AVERAGE, _OTHER = _KEPT = ("average", "other")


@dataclass(slots=True)
class _Copy:
    step: int
    tensors: dict[Name, Tensor] = field(default_factory=dict)
    numbers: dict[Name, Any] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)


class Snapshots:
    """The last two copies of a learner's state."""

    def __init__(self, learner: Learning) -> None:
        self._learner = learner
        self._copies: list[_Copy] = []

    def take(self, step: int, rest: dict[str, Any]) -> None:
        """Copy the state after `step` steps; `rest` comes back with it."""
        old = self._copies.pop() if len(self._copies) == 2 else _Copy(step)
        copy = _Copy(step, rest=rest)
        for name, value in (*self._state(), *self._kept()):
            if isinstance(value, Tensor):
                copy.tensors[name] = _copied(part(value), old.tensors.get(name))
            else:
                copy.numbers[name] = value
        self._copies.insert(0, copy)

    def forget(self) -> None:
        """Drop the copies: what they hold is not to be trusted."""
        self._copies.clear()

    def go_back(self, step: int) -> tuple[int, dict[str, Any]]:
        """Put the state back that is good before a spike in `step`; the step it is of, and its `rest`."""
        newest, *older = self._copies
        copy = older[0] if older and step - newest.step < _LEAST_AGE else newest
        self._copies = [copy]
        self._put_back(copy)
        return copy.step, copy.rest

    @torch.no_grad()
    def _put_back(self, copy: _Copy) -> None:
        for name, value in list(self._state()):
            if name in copy.tensors and isinstance(value, Tensor):
                part(value).copy_(copy.tensors[name], non_blocking=True)
            elif name in copy.numbers:
                self._optimizer_state(name)[name[-1]] = copy.numbers[name]
            else:  # the optimizer had not made it yet
                del self._optimizer_state(name)[name[-1]]
        # Clones: what adopts them may hold on to them, and the copy may be put back again or be written anew.
        kept = {name: value.clone() for (kind, name, *_), value in copy.tensors.items() if kind in _KEPT}
        for other in self._keepers():
            other.adopt(kept)

    def _state(self) -> Iterator[tuple[Name, Any]]:
        for name, buffer in self._learner.model.named_buffers():
            yield ("buffer", name), buffer
        for number, param in enumerate(self._params()):
            yield ("parameter", str(number)), param.detach()
            for key, value in self._learner.optimizer.state.get(param, {}).items():
                yield ("optimizer", str(number), key), value
        if self._learner.average is not None:
            for name, average in self._learner.average.tensors().items():
                yield (_AVERAGE, name), average

    def _kept(self) -> Iterator[tuple[Name, Tensor]]:
        """What is not live, or not always there, and so is adopted instead of being written into."""
        for other in self._learner.others:
            for name, value in other.tensors().items():
                yield (_OTHER, name), value

    def _keepers(self) -> Iterator[Kept | Average]:
        yield from self._learner.others
        if self._learner.average is not None:
            yield self._learner.average

    def _params(self) -> list[Tensor]:
        return [param for group in self._learner.optimizer.param_groups for param in group["params"]]

    def _optimizer_state(self, name: Name) -> dict[str, Any]:
        state: dict[str, Any] = self._learner.optimizer.state[self._params()[int(name[1])]]
        return state


def _copied(live: Tensor, room: Tensor | None) -> Tensor:
    if room is None or room.shape != live.shape or room.dtype != live.dtype:
        room = torch.empty(live.shape, dtype=live.dtype, pin_memory=live.device.type == "cuda")
    return room.copy_(live.detach(), non_blocking=True)
