"""Linear layers that multiply in float8, by torchao: input, weight and gradient are each rounded to 8 bits, with one
scale a tensor, which is found anew at every call.

Parameters stay what they were, in fp32 under their own names, so optimizers and checkpoints know nothing of it. A layer
is converted where it is worth it and does no harm: within the model's repeated blocks, or of a model without any all
but its first and last, and only where float8's kernels take its two dimensions, multiples of 16.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from headrace.errors import OptionError
from headrace.train.parallel.blocks import repeated_blocks
from headrace.train.world import World

logger = logging.getLogger("headrace.train")

FLOAT8 = "float8"
LEAST_CAPABILITY = (8, 9)
"""Of CUDA devices: the first that multiply in float8 (Ada, Hopper)."""

_MULTIPLE = 16
_EMULATED = False
"""Whether the same roundings are computed in other arithmetic, slowly: what tests do, on devices without float8."""


def check_float8(precision: str, axes: Iterable[str]) -> None:
    """Raise OptionError where float8 is asked for without torchao, or on a mesh with axes that it does not fit."""
    if precision != FLOAT8:
        return
    if importlib.util.find_spec("torchao") is None:
        raise OptionError("precision='float8' needs torchao: pip install 'headrace[float8]'")
    if "tp" in axes:
        raise OptionError(
            "float8 scales each weight as a whole, and tp cuts weights: got precision='float8' on a mesh with tp; say "
            "precision='bf16', or a mesh without tp"
        )


def convert_layers(model: nn.Module, world: World) -> tuple[str, ...]:
    """Have a model's linear layers multiply in float8, in place; the names of those that do. Collective.

    Raises OptionError, on all ranks and before anything is changed, for a device without float8 on any of them, and for
    a model without such layers.
    """
    refusals = [found for found in world.gather(_refusal(world.device)) if found is not None]
    if refusals:
        raise OptionError(refusals[0])
    names = tuple(_convertible(model))
    if not names:
        raise OptionError(
            "float8 is for linear layers, in repeated blocks or between the first and the last, whose dimensions are "
            f"multiples of {_MULTIPLE}: {type(model).__name__} has none; say precision='bf16'"
        )
    _convert(model, {name for name in names if not _is_converted(model.get_submodule(name))})
    if world.rank == 0:
        shown = sorted({re.sub(r"\b\d+\b", "*", name) for name in names})
        logger.warning("float8: %d linear layers multiply in it: %s", len(names), ", ".join(shown))
    return names


def restore_layers(model: nn.Module) -> tuple[str, ...]:
    """Undo what an earlier run did, with the same parameters; the layers that multiply in float8 now: none."""
    for name, layer in list(model.named_modules()):
        if _is_converted(layer):
            assert isinstance(layer, nn.Linear)
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            plain.weight, plain.bias = layer.weight, layer.bias
            model.set_submodule(name, plain.train(layer.training))
    return ()


def _is_converted(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torchao.float8")


def _convert(model: nn.Module, names: set[str]) -> None:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # Padded: the last batch of an epoch, say, may have rows that are no multiple of 16.
    config = Float8LinearConfig(emulate=_EMULATED, pad_inner_dim=True)
    modes = {name: module.training for name, module in model.named_modules()}
    convert_to_float8_training(model, config=config, module_filter_fn=lambda _, name: name in names)
    for name in names:
        model.get_submodule(name).train(modes[name])


def _refusal(device: torch.device) -> str | None:
    """Why a device cannot do it, if so."""
    if _EMULATED or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY):
        return None
    least = ".".join(map(str, LEAST_CAPABILITY))
    found = f"device={device.type!r}"
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found = f"{torch.cuda.get_device_name(device)} of capability {capability}"
    return (
        f"precision='float8' needs a CUDA device of capability {least} or more (Ada, Hopper and later): got {found}; "
        "say precision='bf16'"
    )


def _convertible(model: nn.Module) -> Iterator[str]:
    names = {id(module): name for name, module in model.named_modules()}
    blocks = repeated_blocks(model)
    inside = [module for block in blocks for module in block.modules() if isinstance(module, nn.Linear)]
    if not blocks:
        inside = [module for module in model.modules() if isinstance(module, nn.Linear)][1:-1]
    return (names[id(module)] for module in inside if _fits(module))


def _fits(layer: nn.Linear) -> bool:
    """A subclass may compute something else, or its parent without it (attention), and hooks would be lost."""
    hooks: list[Any] = [layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks]
    plain = (type(layer) is nn.Linear or _is_converted(layer)) and not any(hooks)
    return plain and layer.in_features % _MULTIPLE == 0 and layer.out_features % _MULTIPLE == 0
