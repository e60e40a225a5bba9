"""Giving a model its place on the processes of a mesh."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from headrace.errors import OptionError
from headrace.train.objective import PRECISIONS
from headrace.train.parallel.blocks import repeated_blocks
from headrace.train.parallel.compression import Compression, Reducer, check_compression
from headrace.train.parallel.exposed import Exposed
from headrace.train.parallel.mesh import Mesh, parse_mesh
from headrace.train.parallel.recompute import check_recompute, recompute_activations
from headrace.train.parallel.replicated import Replica
from headrace.train.parallel.sharded import Sharded
from headrace.train.world import World, join_world


class Distributed(Protocol):
    """What a step asks of a model, on however many processes it lies."""

    needs_equal_passes: bool
    """Whether every rank must call it equally often in a step."""

    @property
    def model(self) -> nn.Module:
        """The user's module."""

    @property
    def module(self) -> nn.Module:
        """What to call in training."""

    def reducing(self, reduce: bool) -> AbstractContextManager[Any]:
        """Whether the backward pass inside reduces gradients (the last of a step) or only adds them up."""

    def settle(self) -> None:
        """To be called after forward passes that no backward pass follows."""

    def end_backward(self) -> None:
        """Note that the step's communication is over."""

    def exposed(self) -> Exposed:
        """How long the last backward pass waited for communication."""


def distribute(
    model: nn.Module,
    world: World,
    mesh: Mesh,
    precision: str,
    *,
    reducer: Reducer | None = None,
    activation_checkpointing: str | None = None,
    compile: bool = False,
) -> Distributed:
    """Replicate the model or cut it, as the mesh says. Collective; to be done before its optimizer is made.

    `reducer` averages the gradients of replicas; None: as they are. Raises OptionError for `activation_checkpointing`
    of a model without blocks.
    """
    recompute_activations(model, activation_checkpointing)
    if compile:
        for block in repeated_blocks(model) or [model]:
            block.compile()
    if mesh.fsdp > 1:
        return Sharded(model, world, mesh, precision)
    return Replica(model, world, reducer or Reducer(None, model, world))


def parallelize(
    model: nn.Module,
    mesh: str = "dp",
    *,
    precision: str = "fp32",
    compression: Compression | None = None,
    activation_checkpointing: str | None = None,
    compile: bool = False,
    device: str | torch.device | None = None,
) -> nn.Module:
    """The model on the processes of a mesh, for a training loop of your own: call what is returned in its place.

    Gradients are averaged over all processes, each of which has its share of the data. Joins the processes that a
    launcher describes, and moves the model to `device`: None takes this process's GPU, or the CPU where there is none.
    Make the optimizer afterwards, of the parameters of what is returned. `precision="bf16"` or "fp16" has sharded
    parameters gathered in it; autocast, and with fp16 the scale of the loss, are the loop's own. `compression`,
    `activation_checkpointing` and `compile` are the Trainer's; what compression keeps for the next step is in no
    checkpoint of yours. It is collective. Raises OptionError for a mesh that does not fit.

    >>> parallelize(nn.Linear(2, 1), "dp", device="cpu")
    Linear(in_features=2, out_features=1, bias=True)
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}: got {precision!r}")
    check_recompute(activation_checkpointing)
    check_compression(compression, parse_mesh(mesh), precision)
    world = join_world(device)
    sizes = Mesh.of(mesh, world.size)
    model.to(world.device)
    return distribute(
        model,
        world,
        sizes,
        precision,
        reducer=Reducer(compression, model, world),
        activation_checkpointing=activation_checkpointing,
        compile=compile,
    ).module
