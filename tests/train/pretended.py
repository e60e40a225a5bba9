"""Devices of which this machine has only one: CPUs that are told apart by their number, which torch forgets."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

CPUS = [torch.device("cpu", 0), torch.device("cpu", 1)]


class Pretended(TorchFunctionMode):
    """Knows where each tensor would lie, counts what is moved, and lets no function take tensors of two devices."""

    def __init__(self):
        super().__init__()
        self._places = WeakTensorKeyDictionary()
        self.moves = []

    def of(self, tensor):
        return self._places.get(tensor, CPUS[0])

    def lay(self, tensors, device):
        for tensor in tensors:
            self._places[tensor] = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            return self._moved(args[0], args[1])
        out = func(*args, **kwargs)
        if getattr(func, "__name__", "") in ("__get__", "__set__", "backward"):
            return out
        places = {self.of(leaf) for leaf in tree_leaves((args, kwargs)) if _counts(leaf)}
        assert len(places) <= 1, f"{func} was given tensors on {sorted(map(str, places))}"
        self.lay([leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)], next(iter(places), CPUS[0]))
        return out

    def _moved(self, tensor, device):
        if self.of(tensor) == device:
            return tensor
        self.moves.append((self.of(tensor), device))
        moved = tensor.view_as(tensor)
        self._places[moved] = device
        return moved


def _counts(leaf):
    """As on real devices: one number goes with any."""
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0
