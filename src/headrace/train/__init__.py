"""Training: one model on any number of processes, with the loss curve of one.

`Trainer` runs the loop; `adamw`, `sgd`, `lamb`, `adafactor` and `muon` make optimizers, `cosine`, `linear`, `wsd`,
`one_cycle` and `constant` schedules, `power_sgd` and `top_k` compressions of gradients; `Guards` says what a run is
watched for; `export_safetensors` takes a model out of a checkpoint, and `profile_summary` says what a trace shows of
idle time. The names are loaded when first used, so that what needs no torch here (reading a recipe, a worker that ends
because a peer failed) does not wait for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.train.average import ema
    from headrace.train.export import export_safetensors
    from headrace.train.guards import Guards
    from headrace.train.optimizers import adafactor, adamw, lamb, muon, sgd
    from headrace.train.parallel import parallelize, place_layers, power_sgd, top_k
    from headrace.train.profiling import profile_summary
    from headrace.train.result import FitResult
    from headrace.train.schedules import constant, cosine, linear, one_cycle, wsd
    from headrace.train.trainer import Trainer
    from headrace.train.weights import load_weights

_HOMES = {
    "FitResult": "result",
    "Guards": "guards",
    "Trainer": "trainer",
    "adafactor": "optimizers",
    "adamw": "optimizers",
    "constant": "schedules",
    "cosine": "schedules",
    "ema": "average",
    "export_safetensors": "export",
    "lamb": "optimizers",
    "linear": "schedules",
    "load_weights": "weights",
    "muon": "optimizers",
    "one_cycle": "schedules",
    "parallelize": "parallel",
    "place_layers": "parallel",
    "power_sgd": "parallel",
    "profile_summary": "profiling",
    "sgd": "optimizers",
    "top_k": "parallel",
    "wsd": "schedules",
}

__all__ = [
    "FitResult",
    "Guards",
    "Trainer",
    "adafactor",
    "adamw",
    "constant",
    "cosine",
    "ema",
    "export_safetensors",
    "lamb",
    "linear",
    "load_weights",
    "muon",
    "one_cycle",
    "parallelize",
    "place_layers",
    "power_sgd",
    "profile_summary",
    "sgd",
    "top_k",
    "wsd",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace.train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"headrace.train.{_HOMES[name]}"), name)
