"""What is optimised: the user's `inputs` and `loss` around a forward pass, and their answers checked.

`loss` speaks for one batch on one rank: a mean, and the weight of that mean (samples, unless it says otherwise). Which
share of the global mean that is, is the business of the step and of the evaluation, which both come here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headrace.errors import OptionError, TrainingError
from headrace.train.batches import Batch

Inputs = Callable[[Batch], Any]
Loss = Callable[[Any, Batch], Any]

PRECISIONS = ("fp32", "bf16", "fp16", "float8")
_CAST_TO = {"bf16": torch.bfloat16, "fp16": torch.float16, "float8": torch.bfloat16}
"""What is not multiplied in float8 is computed as with bf16."""


@dataclass(slots=True)
class Judgement:
    """What one forward pass gave."""

    loss: Tensor
    """Mean over the batch, of no dimension, with its graph."""
    weight: float | Tensor
    """What the mean counts in the global mean."""
    weighted: bool
    """Whether the weight is the loss function's own, not the number of samples."""
    metrics: dict[str, Any]
    """The loss function's other scalars, weighted like the loss."""
    output: Any


def autocast_for(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What a forward pass and its loss run under; precision: one of PRECISIONS."""
    cast_to = _CAST_TO.get(precision)
    return nullcontext() if cast_to is None else torch.autocast(device.type, cast_to)


class Objective:
    """Runs a model on a batch and judges its output. Raises TrainingError for an answer of the wrong kind."""

    def __init__(self, inputs: Inputs, loss: Loss, precision: str, device: torch.device) -> None:
        if precision not in PRECISIONS:
            raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}: got {precision!r}")
        self._inputs = inputs
        self._loss = loss
        self._precision = precision
        self._device = device
        self._casts = precision in _CAST_TO

    def __call__(self, model: nn.Module, batch: Batch, rows: int) -> Judgement:
        """The judgement of a batch of `rows` samples. But with fp32 the forward pass runs under autocast."""
        if not self._casts:
            return self._judge(_call(model, self._inputs(batch)), batch, rows)
        with self.casting():
            return self._judge(_call(model, self._inputs(batch)), batch, rows)

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """What a model of several stages is called with."""
        arguments = self._inputs(batch)
        if isinstance(arguments, dict):
            raise TrainingError(
                "with pipeline stages inputs must return a tensor or a tuple of tensors: got a dict of keywords"
            )
        return arguments if isinstance(arguments, tuple) else (arguments,)

    def judge(self, output: Any, batch: Batch, rows: int) -> Judgement:
        """The judgement of what a model gave for a batch of `rows` samples."""
        with self.casting():
            return self._judge(output, batch, rows)

    def _judge(self, output: Any, batch: Batch, rows: int) -> Judgement:
        answer = self._loss(output, batch)
        if not isinstance(answer, tuple):
            _check_mean(answer)
            return Judgement(answer, rows, False, {}, output)
        mean, metrics = answer
        _check_mean(mean)
        if not isinstance(metrics, Mapping):
            raise TrainingError(f"loss must return a tensor, or a tensor and a dict: got a {type(metrics).__name__}")
        weighted = "weight" in metrics
        others = {name: value for name, value in metrics.items() if name != "weight"}
        return Judgement(mean, metrics["weight"] if weighted else rows, weighted, others, output)

    def casting(self) -> AbstractContextManager[Any]:
        """What the forward pass and the loss run under."""
        return autocast_for(self._precision, self._device)


def _call(model: nn.Module, arguments: Any) -> Any:
    if isinstance(arguments, Tensor):
        return model(arguments)
    if isinstance(arguments, tuple):
        return model(*arguments)
    if isinstance(arguments, dict):
        return model(**arguments)
    raise TrainingError(
        f"inputs must return a tensor, a tuple of arguments or a dict of keywords: got a {type(arguments).__name__}"
    )


def _check_mean(mean: Any) -> None:
    if not isinstance(mean, Tensor) or mean.dim() != 0:
        found = f"shape {tuple(mean.shape)}" if isinstance(mean, Tensor) else f"a {type(mean).__name__}"
        raise TrainingError(f"loss must return the mean over the batch, a tensor of no dimension: got {found}")
    if torch.is_grad_enabled() and not mean.requires_grad:
        raise TrainingError(
            "loss must depend on parameters that are trained: what it returned has no gradient; compute it from the "
            "model's output, without detach(), argmax() or torch.no_grad()"
        )
