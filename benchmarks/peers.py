"""Peer libraries for the benchmarks: imported only when asked for, and told apart where one is missing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version


def load_streaming() -> types.ModuleType:
    """`streaming.base` of mosaicml-streaming, without what only other parts of the package need (torchvision)."""
    if "streaming" not in sys.modules:
        found = importlib.util.find_spec("streaming")
        if found is None or found.submodule_search_locations is None:
            raise ImportError("No module named 'streaming'")
        package = types.ModuleType("streaming")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["streaming"] = package
        if importlib.util.find_spec("transformers") is None:
            _stand_in_for_transformers()
    return importlib.import_module("streaming.base")


def _stand_in_for_transformers() -> None:
    """Two types of it are imported only to be looked for in batches."""
    sys.modules["transformers"] = types.ModuleType("transformers")
    for module, name in (("feature_extraction_utils", "BatchFeature"), ("tokenization_utils_base", "BatchEncoding")):
        stand_in = sys.modules["transformers." + module] = types.ModuleType("transformers." + module)
        setattr(stand_in, name, type(name, (), {}))


def installed(modules: Mapping[str, str]) -> list[str]:
    """Of peers, name -> module, those that are here; of the others it says so."""
    missing = [name for name, module in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    return [name for name in modules if name not in missing]


def versions(*packages: str) -> dict[str, str]:
    """What is installed, package -> version or "missing"."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
