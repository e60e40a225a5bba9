"""Setting a run up: the processes meet, the model gets its place on them, and what makes and judges steps is built."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

from torch import nn

from headrace.errors import OptionError
from headrace.train.average import Average
from headrace.train.contract import LoaderLike
from headrace.train.engines import PartitionedLearner, PartitionedStepper, Zero, chosen_engine
from headrace.train.evaluation import Evaluator
from headrace.train.frozen import Frozen
from headrace.train.loss_scale import LossScale
from headrace.train.objective import Objective
from headrace.train.optimizers import ByRole, built, state_bytes_per_value, trained
from headrace.train.options import Options, shown
from headrace.train.parallel import (
    AUTO,
    FLOAT8,
    Mesh,
    Pipeline,
    PipelineOptions,
    Reducer,
    check_compression,
    check_memory,
    check_stage,
    check_unplaced,
    choose_mesh,
    convert_layers,
    distribute,
    micro_batch_plan,
    restore_layers,
    take_place,
)
from headrace.train.pipelined import PipelinedPasses
from headrace.train.snapshot import Learner, shapes_of
from headrace.train.step import Stepper
from headrace.train.watchdog import collective_timeout
from headrace.train.world import World, join_world


@dataclass(frozen=True, slots=True)
class Parts:
    """What is set up once, at the first `fit`."""

    world: World
    mesh: Mesh
    learner: Learner
    stepper: Stepper
    evaluator: Evaluator | None
    average: Average | None
    float8_layers: tuple[str, ...]
    """Linear layers that multiply in float8, by the model's names."""


def set_up(model: nn.Module, loader: LoaderLike, options: Options) -> Parts:
    """Join the other processes and give the model its place; the order of what is collective is the same on all."""
    engine = chosen_engine(options)
    if engine is not None:
        engine.meet()
    world = join_world(options.device, collective_timeout(options.hang_timeout_sec))
    check_memory(model)
    check_unplaced(model)
    mesh = _mesh(model, options, world)
    if options.guards is not None and options.guards.replay_every is not None and mesh.fsdp * mesh.tp * mesh.pp > 1:
        raise OptionError(
            f"a replay needs the whole model on every rank: got mesh={options.mesh!r}; say mesh='dp', or leave "
            "replay_every away"
        )
    take_place(mesh, world)
    if mesh.pp == 1:
        model.to(world.device)
    model.train()
    trained(model)  # a model without parameters to train is refused before it is distributed
    shapes = shapes_of(model)
    frozen = None if options.save_frozen else world.agree(lambda: Frozen.of(model))
    objective = Objective(options.inputs, options.loss, options.precision, world.device)
    if mesh.pp > 1 and isinstance(options.optimizer, ByRole):
        raise OptionError(
            f"{shown(options.optimizer)} must see the whole model, and a stage of a pipeline is a part: take "
            "adamw(), or a mesh without pp"
        )
    number, size = _micro_batches(loader, mesh, options)
    reducer = Reducer(options.compression, model, world)
    float8_layers = convert_layers(model, world) if options.precision == FLOAT8 else restore_layers(model)
    if engine is not None:
        distributed = engine.distribute(model, world, options)
    else:
        distributed = distribute(
            model,
            world,
            mesh,
            options.precision,
            tp_plan=options.tp_plan,
            reducer=reducer,
            pipeline=PipelineOptions(options.pp_schedule, options.pp_stages, number),
            casting=objective.casting,
            activation_checkpointing=options.activation_checkpointing,
            compile=options.compile,
        )
    if mesh.pp > 1:
        check_stage(distributed.model, world)
    optimizer = distributed.optimizer if isinstance(distributed, Zero) else built(options.optimizer, distributed.model)
    average = None if options.ema is None else Average(distributed.model, optimizer, options.ema)
    scale = LossScale(world, replicas=mesh.dp == world.size) if options.precision == "fp16" else None
    pipelined = None
    if isinstance(distributed, Pipeline):
        pipelined = PipelinedPasses(distributed, objective, number, size)
    stepper = (PartitionedStepper if isinstance(distributed, Zero) else Stepper)(
        world,
        distributed,
        objective,
        optimizer,
        reducer,
        scale,
        mesh=mesh,
        rank_batch_size=loader.global_batch_size / mesh.data_size,
        full_batches=loader.full_batches,
        micro_batch_size=options.micro_batch_size,
        pipelined=pipelined,
        clip_grad_norm=options.clip_grad_norm,
        guarded=options.guards is not None,
    )
    evaluator = None
    if options.evaluate is not None:
        _ = options.evaluate.steps_per_epoch  # one that cannot work at this world size is refused now
        weights = average.in_place if average is not None and average.evaluated else nullcontext
        evaluator = Evaluator(
            world,
            distributed,
            objective,
            options.evaluate,
            options.metrics,
            options.micro_batch_size,
            mesh,
            pipelined,
            weights,
        )
    kept = (reducer,) if scale is None else (reducer, scale)
    learner = (PartitionedLearner if isinstance(distributed, Zero) else Learner)(
        distributed, optimizer, world, shapes, kept, average, (mesh.tp, mesh.pp), frozen
    )
    return Parts(world, mesh, learner, stepper, evaluator, average, float8_layers)


def _mesh(model: nn.Module, options: Options, world: World) -> Mesh:
    if options.mesh != AUTO:
        return Mesh.of(options.mesh, world.size)
    mesh = choose_mesh(model, state_bytes_per_value(options.optimizer), world)
    check_compression(options.compression, mesh.axes, options.precision)
    return mesh


def _micro_batches(loader: LoaderLike, mesh: Mesh, options: Options) -> tuple[int, int]:
    rank_batch_size = -(-loader.global_batch_size // mesh.data_size)
    return micro_batch_plan(rank_batch_size, options.micro_batch_size, mesh.pp, options.pp_schedule)
