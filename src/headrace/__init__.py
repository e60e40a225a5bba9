"""headrace: from a folder of files and a PyTorch model to a trained, measured run.

Public names are loaded when first used, so that `import headrace` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from headrace.version import __version__

if TYPE_CHECKING:
    from headrace import errors, ondevice, transform
    from headrace.adapters.monitor import Monitor
    from headrace.alarms import Alarms
    from headrace.bench import compare_feed
    from headrace.dataset import Dataset, index, open
    from headrace.errors import HeadraceError
    from headrace.formats import Manifest
    from headrace.load import Loader, Stream, class_balanced, mix
    from headrace.packing import pack
    from headrace.sinks import MLflow, Prometheus, TensorBoard, WandB
    from headrace.train import (
        Guards,
        Trainer,
        adafactor,
        adamw,
        constant,
        cosine,
        ema,
        export_safetensors,
        lamb,
        linear,
        load_weights,
        muon,
        one_cycle,
        parallelize,
        place_layers,
        power_sgd,
        sgd,
        top_k,
        wsd,
    )
    from headrace.tuning.tune import tune

_HOMES = {
    "Alarms": "alarms",
    "Dataset": "dataset",
    "Guards": "train",
    "HeadraceError": "errors",
    "Loader": "load",
    "MLflow": "sinks",
    "Manifest": "formats",
    "Monitor": "adapters.monitor",
    "Prometheus": "sinks",
    "Stream": "load",
    "TensorBoard": "sinks",
    "Trainer": "train",
    "WandB": "sinks",
    "adafactor": "train",
    "adamw": "train",
    "class_balanced": "load",
    "compare_feed": "bench",
    "constant": "train",
    "cosine": "train",
    "ema": "train",
    "export_safetensors": "train",
    "index": "dataset",
    "lamb": "train",
    "linear": "train",
    "load_weights": "train",
    "mix": "load",
    "muon": "train",
    "one_cycle": "train",
    "open": "dataset",
    "pack": "packing",
    "parallelize": "train",
    "place_layers": "train",
    "power_sgd": "train",
    "sgd": "train",
    "top_k": "train",
    "tune": "tuning",
    "wsd": "train",
}
_MODULES = ("errors", "ondevice", "transform")

__all__ = [
    "Alarms",
    "Dataset",
    "Guards",
    "HeadraceError",
    "Loader",
    "MLflow",
    "Manifest",
    "Monitor",
    "Prometheus",
    "Stream",
    "TensorBoard",
    "Trainer",
    "WandB",
    "__version__",
    "adafactor",
    "adamw",
    "class_balanced",
    "compare_feed",
    "constant",
    "cosine",
    "ema",
    "errors",
    "export_safetensors",
    "index",
    "lamb",
    "linear",
    "load_weights",
    "mix",
    "muon",
    "ondevice",
    "one_cycle",
    "open",
    "pack",
    "parallelize",
    "place_layers",
    "power_sgd",
    "sgd",
    "top_k",
    "transform",
    "tune",
    "wsd",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"headrace.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"headrace.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
