"""A model's blocks: the modules that repeat, such as the layers of a transformer."""

from __future__ import annotations

from collections import Counter, defaultdict

from torch import nn


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost modules of which a parent has several of one class, with parameters of their own, in order.

    A module that shares a parameter with one outside itself is none: tied weights belong to the whole. Blocks are what
    is sharded, checkpointed and compiled one at a time; a model without any has one part, itself.
    """
    owners = _owners(model)
    found: list[nn.Module] = []
    _look(model, owners, found)
    return found


def _look(module: nn.Module, owners: Counter[int], found: list[nn.Module]) -> None:
    children = list(module.children())
    alike: dict[type, list[nn.Module]] = defaultdict(list)
    for child in children:
        if _is_block(child, owners):
            alike[type(child)].append(child)
    for child in children:
        if len(alike[type(child)]) > 1 and any(child is one for one in alike[type(child)]):
            found.append(child)
        else:
            _look(child, owners, found)


def _is_block(module: nn.Module, owners: Counter[int]) -> bool:
    """Whether it has children of its own, and parameters that nobody else has."""
    if not any(True for _ in module.children()):
        return False
    own = _owners(module)
    return bool(own) and all(owners[param] == count for param, count in own.items())


def _owners(module: nn.Module) -> Counter[int]:
    """How many modules below and with this one have each parameter, by its id."""
    return Counter(id(param) for part in module.modules() for param in part.parameters(recurse=False))
