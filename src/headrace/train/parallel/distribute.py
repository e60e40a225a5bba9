"""Giving a model its place on the processes of a mesh."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from headrace.errors import OptionError
from headrace.rank import set_data_rank
from headrace.train.objective import PRECISIONS, autocast_for
from headrace.train.parallel.auto import choose_mesh
from headrace.train.parallel.blocks import repeated_blocks
from headrace.train.parallel.compression import Compression, Reducer, check_compression
from headrace.train.parallel.exposed import Exposed
from headrace.train.parallel.float8 import FLOAT8, check_float8, convert_layers, restore_layers
from headrace.train.parallel.mesh import AUTO, Mesh, parse_mesh
from headrace.train.parallel.pipeline import Pipeline, PipelineOptions, Staged, build_pipeline, check_pipeline
from headrace.train.parallel.placement import check_unplaced
from headrace.train.parallel.recompute import check_recompute, recompute_activations
from headrace.train.parallel.refusals import check_memory, check_stage
from headrace.train.parallel.replicated import Replica
from headrace.train.parallel.sharded import Sharded
from headrace.train.parallel.tensor import TensorPlan, Whole, add_up_gradients, cut_layers
from headrace.train.world import World, join_world, wait_as_all

_ADAMW_BYTES = 8.0
"""What AdamW keeps for each value: the likeliest optimizer of a loop that is not ours."""

Casting = Callable[[], AbstractContextManager[Any]]


class Distributed(Protocol):
    """What a step asks of a model, on however many processes it lies."""

    needs_equal_passes: bool
    """Whether every rank must call it equally often in a step."""

    @property
    def model(self) -> nn.Module:
        """The user's module; of a pipeline, the layers that this process has."""

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

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes that hold these (buffers, running statistics, say) the first one's values. Collective."""


def distribute(
    model: nn.Module,
    world: World,
    mesh: Mesh,
    precision: str,
    *,
    tp_plan: TensorPlan | None = None,
    pipeline: PipelineOptions | None = None,
    casting: Casting = nullcontext,
    reducer: Reducer | None = None,
    activation_checkpointing: str | None = None,
    compile: bool = False,
) -> Distributed:
    """Replicate the model or cut it, as the mesh says. Collective; to be done before its optimizer is made.

    `reducer` averages the gradients of replicas; None: as they are. `casting` gives the context that stages of a
    pipeline run in. Raises OptionError for `activation_checkpointing` of a model without blocks, and for plans and
    stages that do not fit it.
    """
    if mesh.fsdp == mesh.tp == mesh.pp == 1:
        prepare(model.to(world.device), activation_checkpointing, compile)
        return Replica(model, world, reducer or Reducer(None, model, world))
    if mesh.pp == 1:
        model.to(world.device)
    _share(model)
    devices = mesh.devices(world.device)
    if mesh.tp > 1:
        cut_layers(model, devices["tp"], tp_plan)
    prepare(model, activation_checkpointing, compile)
    if mesh.pp > 1:
        return _pipeline(model, world, mesh, devices, precision, pipeline or PipelineOptions(), casting)
    if mesh.data_size == 1:
        return Whole(model)
    return Sharded(model, _data_axes(devices, mesh), precision)


def prepare(model: nn.Module, activation_checkpointing: str | None, compile: bool) -> None:
    """Have a model's blocks make their activations again, and run compiled, as asked.

    Raises OptionError for `activation_checkpointing` of a model without blocks.
    """
    recompute_activations(model, activation_checkpointing)
    if compile:
        for module in _compiled(model):
            module.compile()


def _compiled(model: nn.Module) -> list[nn.Module]:
    """The blocks, where one compilation serves all; those of many shapes (a ResNet's) would each need their own."""
    blocks = repeated_blocks(model)
    shapes = {tuple(param.shape for param in block.parameters()) for block in blocks}
    return list(blocks) if len(shapes) == 1 else [model]


def _data_axes(devices: DeviceMesh, mesh: Mesh) -> DeviceMesh:
    return devices["dp", "fsdp"] if mesh.dp > 1 else devices["fsdp"]


def _pipeline(
    model: nn.Module,
    world: World,
    mesh: Mesh,
    devices: DeviceMesh,
    precision: str,
    options: PipelineOptions,
    casting: Casting,
) -> Pipeline:
    axes, peers = _data_axes(devices, mesh), None
    if mesh.data_size > 1:
        peers = (axes._flatten("data") if mesh.dp > 1 else axes).get_group()
        wait_as_all([peers], world.device)

    def place(stage: nn.Module) -> None:
        if mesh.data_size > 1:
            Sharded(stage, axes, precision)
        else:
            add_up_gradients(stage)

    return build_pipeline(model, devices["pp"], world.device, options, casting, place, peers)


def _share(model: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, src=0)


def take_place(mesh: Mesh, world: World) -> None:
    """Tell loaders whose share of the data this process has, where several have one."""
    set_data_rank(mesh.data_rank(world.rank) if mesh.data_size != world.size else None)


def _micro_batches(number: int | None, num_stages: int, schedule: str) -> int:
    """As many as asked for, or two for each stage. Raises OptionError for a number that the schedule cannot run."""
    if number is None:
        return 2 * num_stages
    if num_stages == 1:
        raise OptionError(f"pp_micro_batches is for a mesh with pp: got {number}; say mesh='pp=2', or leave it away")
    if number < num_stages or (schedule == "interleaved" and number % num_stages):
        raise OptionError(
            f"pp_micro_batches must be at least the {num_stages} processes of a pipeline, and with "
            f"pp_schedule='interleaved' a multiple of them: got {number}"
        )
    return number


def parallelize(
    model: nn.Module,
    mesh: str = "dp",
    *,
    precision: str = "fp32",
    tp_plan: TensorPlan | None = None,
    compression: Compression | None = None,
    activation_checkpointing: str | None = None,
    compile: bool = False,
    pp_schedule: str = "1f1b",
    pp_stages: Sequence[str] | None = None,
    pp_micro_batches: int | None = None,
    device: str | torch.device | None = None,
) -> nn.Module:
    """The model on the processes of a mesh, for a training loop of your own: call what is returned in its place.

    Gradients are averaged over all processes, each of which has its share of the data. Joins the processes that a
    launcher describes, and moves the model to `device`: None takes this process's GPU, or the CPU where there is none.
    Make the optimizer afterwards, of the parameters of what is returned. `precision="bf16"` or "fp16" has sharded
    parameters gathered in it, "float8" in bf16, and its linear layers multiply in float8, in place; autocast, to bf16
    with both, and with fp16 the scale of the loss, are the loop's own. `compression`,
    `activation_checkpointing` and `compile` are the Trainer's; what compression keeps for the next step is in no
    checkpoint of yours. It is collective. Raises OptionError for a mesh that does not fit.

    With pp in the mesh what is returned is a `Staged`, whose `learn` runs a batch forward and backward, in
    `pp_micro_batches` parts (None: two for each stage), under autocast of `precision`; `pp_schedule` and `pp_stages`
    are the Trainer's.

    >>> parallelize(nn.Linear(2, 1), "dp", device="cpu")
    Linear(in_features=2, out_features=1, bias=True)
    """
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}: got {precision!r}")
    check_recompute(activation_checkpointing)
    check_memory(model)
    check_unplaced(model)
    check_compression(compression, parse_mesh(mesh), precision)
    check_pipeline(mesh, pp_schedule, pp_stages)
    world = join_world(device)
    sizes = choose_mesh(model, _ADAMW_BYTES, world) if mesh == AUTO else Mesh.of(mesh, world.size)
    check_compression(compression, sizes.axes, precision)
    check_float8(precision, sizes.axes)
    if tp_plan is not None and sizes.tp == 1:
        raise OptionError(f"tp_plan is for a mesh with tp: got mesh={mesh!r}; say mesh='tp=2', or leave it away")
    micro_batches = _micro_batches(pp_micro_batches, sizes.pp, pp_schedule)
    if precision == FLOAT8:
        convert_layers(model, world)
    else:
        restore_layers(model)
    take_place(sizes, world)
    distributed = distribute(
        model,
        world,
        sizes,
        precision,
        tp_plan=tp_plan,
        pipeline=PipelineOptions(pp_schedule, pp_stages, micro_batches),
        casting=lambda: autocast_for(precision, world.device),
        reducer=Reducer(compression, model, world),
        activation_checkpointing=activation_checkpointing,
        compile=compile,
    )
    if isinstance(distributed, Pipeline):
        check_stage(distributed.model, world)
        return Staged(distributed, micro_batches, lambda: autocast_for(precision, world.device), world.device)
    return distributed.module
