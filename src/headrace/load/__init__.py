"""How batches reach the device on time.

Names are loaded when first used: a Stream is a dataset of torch's, and the loader process, which needs neither it nor
the Loader, has no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.load.healing import Restart
    from headrace.load.job import Skipped
    from headrace.load.loader import Loader
    from headrace.load.mixed import class_balanced, mix
    from headrace.load.stream import Stream

_HOMES = {
    "Loader": "loader",
    "Restart": "healing",
    "Skipped": "job",
    "Stream": "stream",
    "class_balanced": "mixed",
    "mix": "mixed",
}

__all__ = ["Loader", "Restart", "Skipped", "Stream", "class_balanced", "mix"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace.load' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"headrace.load.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
