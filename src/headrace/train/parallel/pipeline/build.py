"""From a model and a mesh to the pipeline of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from headrace.errors import OptionError
from headrace.train.parallel.mesh import parse_mesh
from headrace.train.parallel.pipeline.pipeline import STAGES_A_RANK, Line, Pipeline, Stage
from headrace.train.parallel.pipeline.stages import cut_stages


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """How a pipeline is to run."""

    schedule: str = "1f1b"
    stages: Sequence[str] | None = None
    """The modules at which each stage but the first begins; None: stages of even size."""
    num_micro_batches: int = 1
    """Of every step."""


def check_pipeline(mesh: str, schedule: str, stages: Sequence[str] | None) -> None:
    """Raise OptionError for a schedule that does not exist, and for options that a mesh without pp has no use for."""
    if schedule not in STAGES_A_RANK:
        raise OptionError(f"pp_schedule must be one of {', '.join(STAGES_A_RANK)}: got {schedule!r}")
    for name, is_given in (("pp_schedule", schedule != "1f1b"), ("pp_stages", stages is not None)):
        if is_given and "pp" not in parse_mesh(mesh):
            raise OptionError(f"{name} is for a mesh with pp: got mesh={mesh!r}; say mesh='pp=2', or leave it away")


def micro_batch_plan(
    rank_batch_size: int, micro_batch_size: int | None, line_size: int, schedule: str
) -> tuple[int, int]:
    """How many micro-batches a step has, and of how many samples each; by default two for each process of a line."""
    size = micro_batch_size or max(1, -(-rank_batch_size // (2 * line_size)))
    number = max(1, -(-rank_batch_size // size))
    if schedule == "interleaved":
        number = -(-number // line_size) * line_size
    # Fewer would leave a process without work for the whole step, and 1F1B refuses them.
    return max(number, line_size), size


def build_pipeline(
    model: nn.Module,
    devices: DeviceMesh,
    device: torch.device,
    options: PipelineOptions,
    casting: Callable[[], AbstractContextManager[Any]],
    place: Callable[[nn.Module], None],
    peers: dist.ProcessGroup | None,
) -> Pipeline:
    """Cut the model into stages and keep this process's; the other layers lose their memory (device "meta").

    `devices` has one axis, along the pipeline; `place` shards or copies a stage over other axes, in place.
    `peers`: the processes with the same stages of other pipelines, if any. Collective.
    """
    line = Line(devices.get_group(), devices.get_local_rank(), devices.size())
    each = STAGES_A_RANK[options.schedule]
    parts = cut_stages(model, line.size * each, options.stages)
    own = {number: parts[number].to(device) for number in range(line.rank, len(parts), line.size)}
    stages = {number: Stage(part, casting, device) for number, part in own.items()}
    for stage in stages.values():
        place(stage)
    held = _together(list(own.values()))
    _keep_only(model, held)
    return Pipeline(held, stages, line, device, options.schedule, options.num_micro_batches, peers)


def _together(parts: Sequence[nn.Module]) -> nn.Module:
    """One module with the layers of all parts under their names."""
    if len(parts) == 1:
        return parts[0]
    held = nn.Module()
    for part in parts:
        _attach(held, part)
    return held


def _attach(target: nn.Module, source: nn.Module) -> None:
    target._parameters.update(source._parameters)
    target._buffers.update(source._buffers)
    for name, child in source.named_children():
        if type(child) is nn.Module:  # what torch.fx makes for the dots in names; each part has its own
            if not hasattr(target, name):
                target.add_module(name, nn.Module())
            _attach(getattr(target, name), child)
        else:
            target.add_module(name, child)


def _keep_only(model: nn.Module, held: nn.Module) -> None:
    """Make the model's tensors those that are held, and give the others, which other processes have, no memory."""
    params, buffers = dict(held.named_parameters()), dict(held.named_buffers())
    for prefix, module in model.named_modules():
        for name, param in module._parameters.items():
            if param is not None:
                own = params.get(f"{prefix}.{name}".lstrip("."))
                module._parameters[name] = _nowhere(param) if own is None else own
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffers.get(f"{prefix}.{name}".lstrip("."), buffer.to("meta"))


def _nowhere(param: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
