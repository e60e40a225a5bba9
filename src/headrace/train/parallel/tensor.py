"""Tensor parallel: processes compute each layer together, each with some of its rows or columns.

A plan says for modules, by name, how: `colwise` cuts a linear layer's outputs, `rowwise` its inputs, and so on, in
torch's styles. It comes from the user, or a Hugging Face model's own, or it is made for the MLPs of a model; whatever
it does not name every process computes whole. Processes of a tensor-parallel group see the same samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from headrace.errors import OptionError
from headrace.train.parallel.buffers import share
from headrace.train.parallel.exposed import NOTHING, Exposed
from headrace.train.parallel.mlps import find_mlps

TensorPlan = Mapping[str, str | ParallelStyle]

_STYLES: dict[str, ParallelStyle] = {
    "colwise": ColwiseParallel(),
    "rowwise": RowwiseParallel(),
    "colwise_gather": ColwiseParallel(output_layouts=Replicate()),
    "embedding": RowwiseParallel(input_layouts=Replicate()),
    "sequence": SequenceParallel(),
}
_HUGGING_FACE = {
    "colwise": "colwise",
    "rowwise": "rowwise",
    "colwise_rep": "colwise_gather",
    "colwise_gather_output": "colwise_gather",
    "embedding_rowwise": "embedding",
    "sequence_parallel": "sequence",
}
_CUT_ROWS = ("colwise", "colwise_gather", "embedding")


class Whole:
    """A model whose gradients need no reduction: every process that has a share of the data has the whole batch."""

    needs_equal_passes = True

    def __init__(self, model: nn.Module) -> None:
        self.model = self.module = model
        add_up_gradients(model)

    def reducing(self, reduce: bool) -> AbstractContextManager[Any]:
        """Nothing is reduced."""
        return nullcontext()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes rank 0's values. Collective."""
        share(tensors)

    def settle(self) -> None:
        """Nothing is to be put back."""

    def end_backward(self) -> None:
        """Nothing is measured: what processes tell each other lies within the passes."""

    def exposed(self) -> Exposed:
        """Not known apart from compute."""
        return NOTHING


def _add_up(param: Tensor) -> None:
    """A norm over a part of the sequence leaves a part of its gradient on each process."""
    gradient = param.grad
    if isinstance(gradient, DTensor) and any(placement.is_partial() for placement in gradient.placements):
        param.grad = gradient.redistribute(placements=param.placements)  # type: ignore[attr-defined]


def add_up_gradients(model: nn.Module) -> None:
    """Have gradients that lie in parts, as those of a norm over a part of the sequence, summed as they are made.

    For a model that is not sharded besides, which does it itself, and once it is on its device: moving it loses hooks.
    """
    for param in model.parameters():
        if isinstance(param, DTensor) and param.requires_grad:
            param.register_post_accumulate_grad_hook(_add_up)  # type: ignore[no-untyped-call]


def cut_layers(model: nn.Module, devices: DeviceMesh, plan: TensorPlan | None) -> None:
    """Cut the model's layers over the processes of a mesh of one axis, by a plan, in place. Collective.

    Raises OptionError where there is no plan, or one that does not fit the model or the mesh.
    """
    styles = resolve_plan(model, plan, devices.size())
    parallelize_module(model, devices, {name: _style(style) for name, style in styles.items()})


def check_plan(plan: TensorPlan | None) -> None:
    """Raise OptionError for styles that do not exist."""
    for pattern, style in (plan or {}).items():
        if not isinstance(style, ParallelStyle) and style not in _STYLES:
            raise OptionError(
                f"tp_plan gives modules one of the styles {', '.join(_STYLES)}, or a torch ParallelStyle: got "
                f"{style!r} for {pattern!r}"
            )


def resolve_plan(model: nn.Module, plan: TensorPlan | None, size: int) -> dict[str, str | ParallelStyle]:
    """The style of every module that is cut, by its full name: the user's plan, the model's own, or that of its MLPs.

    Raises OptionError for a pattern that names no module, dimensions that `size` does not divide, and a model for
    which there is no plan.
    """
    if plan is not None:
        check_plan(plan)
        found = dict(_matched(model, plan))
    elif getattr(model, "tp_plan", None):
        found = _own_plan(model, size)
    else:
        found = _plan_for_mlps(model, size)
    for name, style in found.items():
        _check_divides(name, model.get_submodule(name), style, size)
    return found


def _matched(model: nn.Module, plan: TensorPlan) -> Iterator[tuple[str, str | ParallelStyle]]:
    names = [name for name, _ in model.named_modules()]
    for pattern, style in plan.items():
        matches = [name for name in names if re.fullmatch(_expression(pattern), name)]
        if not matches:
            raise OptionError(
                f"tp_plan names modules of the model: {pattern!r} is none of {', '.join(names[1:9])}, ...; "
                "* stands for one part of a name"
            )
        yield from ((name, style) for name in matches)


def _expression(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", r"[^.]+")


def _own_plan(model: nn.Module, size: int) -> dict[str, str | ParallelStyle]:
    """A Hugging Face model's. Modules with tied weights stay whole: cut one by one they would no longer be tied."""
    own: Mapping[str, str] = model.tp_plan  # type: ignore[assignment]
    unknown = {pattern: style for pattern, style in own.items() if style not in _HUGGING_FACE}
    if unknown:
        shown = ", ".join(f"{pattern} ({style})" for pattern, style in list(unknown.items())[:4])
        raise OptionError(f"the model's own tensor-parallel plan has styles that are not known: {shown}; give tp_plan")
    heads = getattr(getattr(model, "config", None), "num_key_value_heads", None)
    if heads is not None and heads % size:
        raise OptionError(f"tp must divide the model's {heads} heads of keys and values: got tp={size}")
    styles = {pattern: _HUGGING_FACE[style] for pattern, style in own.items()}
    present = {
        pattern: style
        for pattern, style in styles.items()
        if any(re.fullmatch(_expression(pattern), name) for name, _ in model.named_modules())
    }
    shared = _shared_parameters(model)
    return {
        name: style
        for name, style in _matched(model, present)
        if not any(id(param) in shared for param in model.get_submodule(name).parameters())
    }


def _shared_parameters(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    shared: set[int] = set()
    for module in model.modules():
        for param in module.parameters(recurse=False):
            (shared if id(param) in seen else seen).add(id(param))
    return shared


def _plan_for_mlps(model: nn.Module, size: int) -> dict[str, str | ParallelStyle]:
    found: dict[str, str | ParallelStyle] = {}
    uneven = []
    for mlp in find_mlps(model):
        width = model.get_submodule(mlp.last).in_features
        if width % size:  # type: ignore[operator]
            uneven.append(f"{mlp.last} ({width} inputs)")
            continue
        found |= dict.fromkeys(mlp.first, "colwise")
        found[mlp.last] = "rowwise"
    if not found:
        why = f": tp={size} does not divide {', '.join(uneven[:4])}" if uneven else ""
        raise OptionError(
            "tensor parallel needs a plan: the model has none of its own, and no linear layers with only element-wise "
            f"functions between them that can be cut{why}; give tp_plan={{'blocks.*.up': 'colwise', "
            "'blocks.*.down': 'rowwise'}"
        )
    return found


def _check_divides(name: str, module: nn.Module, style: str | ParallelStyle, size: int) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(style, str) or style == "sequence" or weight is None:
        return
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise OptionError(
            f"the style {style!r} is for linear layers and embeddings: {name} is a {type(module).__name__}"
        )
    dimension = 0 if style in _CUT_ROWS else 1
    if weight.shape[dimension] % size:
        raise OptionError(
            f"tp={size} must divide what it cuts: {name}.weight has shape {tuple(weight.shape)} and is cut along "
            f"dimension {dimension}; choose another width or mesh, or leave it out of tp_plan"
        )


def _style(style: str | ParallelStyle) -> ParallelStyle:
    return _STYLES[style] if isinstance(style, str) else style
