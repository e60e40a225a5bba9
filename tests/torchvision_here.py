"""torchvision's transforms, also beside a torch that its compiled part does not fit (a build for CPUs, say)."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch


def transforms(version):
    """The module `torchvision.transforms.v2`, or for "v1" `torchvision.transforms`; skips where it is not installed."""
    found = importlib.util.find_spec("torchvision")
    if found is None:
        pytest.skip("torchvision is not installed")
    _declare_operators(Path(found.origin).parent / "_meta_registrations.py")
    return importlib.import_module("torchvision.transforms" + (".v2" if version == "v2" else ""))


_kept = []  # a library's operators are there as long as it is


def _declare_operators(registrations):
    """Declare the operators that transforms do not use, but whose absence keeps torchvision from being imported."""
    if _kept or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', registrations.read_text()):
        library.define(f"{name}(Tensor a) -> Tensor")
    _kept.append(library)
