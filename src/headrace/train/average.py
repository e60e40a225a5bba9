"""An exponential moving average of the weights, beside those that are trained.

It moves after each step of the optimizer, and only then, so a step that is skipped leaves it where it is. Each rank
averages its own part of a parameter, without a word to the others. Averaged are the parameters that the optimizer
trains, and the running statistics of batch norms, which belong to the weights they were taken under; other buffers
(masks, tables, counts) are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from headrace.errors import OptionError, StateError
from headrace.train.dtensors import part, part_like

PREFIX, _STEPS = "ema.", "ema_steps"


@dataclass(frozen=True, slots=True)
class EMA:
    """How weights are averaged."""

    decay: float = 0.999
    every: int = 1
    evaluate: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise OptionError(f"the decay of an average must be above 0 and below 1: got {self.decay}")
        if self.every < 1:
            raise OptionError(f"the average's every must be at least 1 step: got {self.every}")

    def rate(self, updates: int) -> float:
        """What share of the weights goes into the average, after so many updates.

        It begins high, so that the average forgets where the weights began: after n updates it spans about n / 10.
        """
        return 1 - min(self.decay, (1 + updates) / (10 + updates))


def ema(decay: float = 0.999, *, every: int = 1, evaluate: bool = True) -> EMA:
    """An average that keeps `decay` of itself at each update, one every `every` steps, for `Trainer(ema=)`.

    It spans about every / (1 - decay) steps; at first less. `evaluate`: evaluations are of the averaged weights;
    False: of the trained ones. Raises OptionError for a decay that is not between 0 and 1, or an `every` below 1.
    """
    return EMA(decay, every, evaluate)


class Average:
    """The average of one model's weights; follows its optimizer from when it is made."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, options: EMA) -> None:
        """Begin at the model's weights, which must have their place on the ranks already."""
        self._options = options
        self.evaluated = options.evaluate
        """Whether evaluations are of the averaged weights."""
        self._live = {**_trained(model, optimizer), **_statistics(model)}
        self._parts = [_wide(part(tensor)).clone() for tensor in self._live.values()]
        self._steps = 0
        self._in_place = False
        optimizer.register_step_post_hook(lambda *_: self._follow())

    @torch.no_grad()
    def _follow(self) -> None:
        if self._in_place:
            raise OptionError("averaged weights are in place of the trained ones: leave `averaged()` before a step")
        self._steps += 1
        updates, left = divmod(self._steps, self._options.every)
        if not left:
            live = [_wide(part(tensor)) for tensor in self._live.values()]
            torch._foreach_lerp_(self._parts, live, self._options.rate(updates - 1))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside, and afterwards, bit for bit, those it had."""
        if self._in_place:
            raise OptionError("averaged weights are in place already: use one `averaged()` at a time")
        with torch.no_grad():
            live = [part(tensor) for tensor in self._live.values()]
            kept = [tensor.clone() for tensor in live]
            torch._foreach_copy_(live, self._parts)
        self._in_place = True
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(live, kept)
            self._in_place = False

    def statistics(self) -> list[Tensor]:
        """Averaged running statistics, which differ from rank to rank until they are shared."""
        return [own for own, live in zip(self._parts, self._live.values(), strict=True) if not live.requires_grad]

    def weights(self) -> list[Tensor]:
        """This rank's parts of the averaged parameters, live: what replicas hold alike, as statistics are not."""
        return [own for own, live in zip(self._parts, self._live.values(), strict=True) if live.requires_grad]

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it: the live averages, cut as the parameters are, and the number of steps."""
        named = zip(self._live.items(), self._parts, strict=True)
        found = {f"{PREFIX}{name}": part_like(tensor.detach(), own) for (name, tensor), own in named}
        return {**found, _STEPS: torch.tensor(self._steps)}

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what was read into `tensors()`; where the checkpoint had no average, from the model's weights."""
        self._steps = int(tensors[_STEPS]) if _STEPS in tensors else 0
        if _STEPS not in tensors:
            with torch.no_grad():
                torch._foreach_copy_(self._parts, [part(tensor) for tensor in self._live.values()])


def room_for_average(
    average: Average | None, entries: Mapping[str, Any], elsewhere: Set[str] = frozenset()
) -> dict[str, Tensor]:
    """Where a checkpoint's average is to be read to; empty where it has none.

    `elsewhere`: names of tensors of which other processes keep the average, if anybody does. Raises StateError when it
    has one that this run would lose, or one of other weights.
    """
    saved = {name: tuple(entry.size) for name, entry in entries.items() if name.startswith(PREFIX) or name == _STEPS}
    if not saved:
        return {}
    if average is None:
        raise StateError("the checkpoint has an average of the weights, and this run keeps none: set ema=0.999, say")
    room = average.tensors()
    saved = {name: shape for name, shape in saved.items() if name.removeprefix(PREFIX) not in elsewhere}
    mine = {name: tuple(tensor.shape) for name, tensor in room.items()}
    if saved != mine:
        name = min(name for name in saved.keys() | mine.keys() if saved.get(name) != mine.get(name))
        raise StateError(
            f"the checkpoint averages other weights: {name.removeprefix(PREFIX)!r} is {saved.get(name, 'missing')} in "
            f"its average and {mine.get(name, 'missing')} here; train the parameters that it trained"
        )
    return room


def _trained(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    own = {id(param) for group in optimizer.param_groups for param in group["params"]}
    return {name: param for name, param in model.named_parameters() if id(param) in own}


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _NormBase)]
    return {
        f"{name}.{key}".lstrip("."): buffer
        for name, module in norms
        for key, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }


def _wide(tensor: Tensor) -> Tensor:
    """In at least fp32: in bf16 a small share of the weights would be rounded away."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
