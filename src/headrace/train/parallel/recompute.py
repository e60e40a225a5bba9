"""Memory for time: activations of a model's blocks that are made again in the backward pass instead of kept.

Names of parameters stay as they are, so that checkpoints do not tell whether a run did so: a block's `forward` is
replaced, not the block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from headrace.errors import OptionError
from headrace.train.parallel.blocks import repeated_blocks

HOW = ("full", "selective")

_aten = torch.ops.aten
_DEAR = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_mm.default,
    _aten.convolution.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
}
"""What "selective" keeps: what costs much to make and, beside that, little to keep."""


def check_recompute(how: str | None) -> None:
    """Raise OptionError for a way that there is not."""
    if how not in (None, *HOW):
        raise OptionError(f"activation_checkpointing must be one of None, {', '.join(HOW)}: got {how!r}")


def recompute_activations(model: nn.Module, how: str | None) -> None:
    """Have every block make its activations again: all of them ("full"), or all but products of matrices, convolutions
    and attention ("selective"). None: keep them. Random numbers are the same both times.

    Raises OptionError for a model without repeated blocks.
    """
    if how is None:
        return
    blocks = repeated_blocks(model)
    if not blocks:
        raise OptionError(
            f"activation_checkpointing={how!r} works on a model's repeated blocks, such as layers in a ModuleList: "
            f"{type(model).__name__} has none; leave it out, or wrap parts of the model by torch.utils.checkpoint"
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks:
        block.forward = _recomputed(block.forward, options)


def _recomputed(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, **options, **kwargs)

    return run


def _policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE
