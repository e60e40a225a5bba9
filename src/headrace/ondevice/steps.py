"""A chain of steps over one batch: called in turn, errors named, randomness where it is taken.

A step is any callable `step(batch)` or `step(batch, rng)` that returns the new batch. It may have two things more:
`check(batch)`, which is shown the batch while it is on the host still, where looking at values waits for no device;
and `needs_cuda = True`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from headrace.errors import OptionError, TransformError
from headrace.transform.chain import describe, takes_rng

Batch: TypeAlias = dict[str, Any]
"""`__key__` (list of str) and fields; tensors have the batch first, other fields are lists."""
BatchStep: TypeAlias = Callable[..., Batch]


class Steps:
    """Steps that are known to be such. Raises OptionError for what is none."""

    def __init__(self, steps: Sequence[BatchStep] = ()) -> None:
        if not isinstance(steps, list | tuple):
            raise OptionError(f"on_device is a tuple of steps, each step(batch) or step(batch, rng): got {steps!r}")
        self._steps = tuple((step, takes_rng(step, "batch")) for step in steps)

    def check_device(self, on_cuda: bool) -> None:
        """Refuse steps that need CUDA where batches stay on the CPU."""
        for step, _ in self._steps:
            if not on_cuda and getattr(step, "needs_cuda", False):
                raise OptionError(f'{_name(step)} works on a CUDA device: give the loader device="cuda"')

    def check(self, batch: Batch) -> None:
        """Have the steps that want it look at the batch on the host. Raises TransformError."""
        for step, _ in self._steps:
            if hasattr(step, "check") and _has_fields(batch):
                _named(step, step.check, batch)

    def __call__(self, batch: Batch, make_rng: Callable[[], np.random.Generator]) -> Batch:
        """The batch after every step. A batch that has no fields, as `collate` gives none, stays as it is.

        `make_rng` is called once, and only if a step takes randomness; the steps draw from the one generator in turn.
        The caller's dict is left as it is, and keys stay. A step that fails raises TransformError, which names it.
        """
        if not _has_fields(batch):
            return batch
        result, rng = dict(batch), None
        for step, draws in self._steps:
            if draws and rng is None:
                rng = make_rng()
            result = _named(step, step, result, *([rng] if draws else []))
            if not isinstance(result, dict):
                raise TransformError(f"{_name(step)} must return a dict of fields: got {type(result).__name__}")
        return {"__key__": batch["__key__"], **result} if "__key__" in batch else result


def tensors_of(value: Any) -> Iterable[torch.Tensor]:
    """The tensors in a value of a batch, or in a batch."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors_of(inner)


def _has_fields(batch: Batch) -> bool:
    return any(not name.startswith("__") for name in batch)


def _named(step: BatchStep, call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as err:
        detail = str(err) if isinstance(err, TransformError) else f"{type(err).__name__}: {err}"
        raise TransformError(f"{_name(step)} failed: {' '.join(detail.split())}") from err


def _name(step: BatchStep) -> str:
    return f"the on_device step {describe(step)}"
