"""Parameters that are not trained, and so need not be in every checkpoint: what proves that they are the same again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xxhash
from torch import nn

from headrace.errors import StateError


@dataclass(frozen=True, slots=True)
class Frozen:
    """The parameters of a model that require no gradient."""

    fingerprint: str
    names: frozenset[str]
    """Of a tied one all its names."""

    @classmethod
    def of(cls, model: nn.Module) -> Frozen:
        """Those of a model that lies whole in memory."""
        named = model.named_parameters(remove_duplicate=False)
        return cls(fingerprint(model), frozenset(name for name, param in named if not param.requires_grad))


def fingerprint(model: nn.Module) -> str:
    """The xxh3-128 of all frozen parameters, with their names, as hex. For parameters that lie whole in memory."""
    found = xxhash.xxh3_128()
    for name, param in model.named_parameters():
        if not param.requires_grad:
            found.update(f"{name} {param.dtype} {tuple(param.shape)}".encode())
            found.update(param.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def check_frozen(saved: str | None, own: str | None) -> None:
    """Raise StateError where a checkpoint leaves out frozen parameters (`saved`: their fingerprint) and this run's are
    others, or where only one of both leaves them out.
    """
    if (saved is None) != (own is None):
        raise StateError(
            f"it was written with save_frozen={saved is None}, and this run has save_frozen={own is None}: say the same"
        )
    if saved != own:
        raise StateError(
            f"it leaves out the frozen parameters, whose xxh3-128 was {saved}, and this model's is {own}: start from "
            "the weights that the run started from"
        )
