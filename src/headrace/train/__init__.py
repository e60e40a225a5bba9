"""Training: one model on any number of processes, with the loss curve of one.

`Trainer` runs the loop; `adamw` and `sgd` make optimizers, `cosine` and `constant` schedules. The names are loaded when
first used, so that what needs no torch here (reading a recipe, a worker that ends because a peer failed) does not
wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.train.optimizers import adamw, sgd
    from headrace.train.schedules import constant, cosine
    from headrace.train.trainer import FitResult, Trainer

_HOMES = {
    "FitResult": "trainer",
    "Trainer": "trainer",
    "adamw": "optimizers",
    "constant": "schedules",
    "cosine": "schedules",
    "sgd": "optimizers",
}

__all__ = ["FitResult", "Trainer", "adamw", "constant", "cosine", "sgd"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"headrace.train.{_HOMES[name]}"), name)
