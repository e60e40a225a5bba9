"""`mesh="auto"`: the simplest mesh on which a model has room, from what is known before the first step.

Counted are the model's values as they are, gradients of the trained ones, and the optimizer's state. Activations depend
on the batch and the code and are not counted; a part of the memory is left to them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import nn

from headrace.errors import OptionError
from headrace.load.host import available_memory_bytes
from headrace.rank import local_world_size
from headrace.train.parallel.mesh import Mesh
from headrace.train.world import World

SHARE_OF_STATES = 0.6
"""Of a process's memory; the rest is for activations and what libraries hold."""

logger = logging.getLogger("headrace.train")


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that training takes on a process that holds the whole model, without activations."""

    model: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.model + self.gradients + self.optimizer

    def __str__(self) -> str:
        parts = ("model", self.model), ("gradients", self.gradients), ("optimizer", self.optimizer)
        return f"{shown_bytes(self.total)} ({', '.join(f'{name} {shown_bytes(size)}' for name, size in parts)})"


def needed(model: nn.Module, state_bytes: float) -> Need:
    """What a model needs; `state_bytes`: of the optimizer, for each trained value."""
    trained = [param for param in model.parameters() if param.requires_grad]
    everything = (*model.parameters(), *model.buffers())
    return Need(
        sum(tensor.numel() * tensor.element_size() for tensor in everything),
        sum(param.numel() * param.element_size() for param in trained),
        round(sum(param.numel() for param in trained) * state_bytes),
    )


def auto_mesh(need: Need, room: int, world_size: int, local_size: int) -> tuple[Mesh, str]:
    """The mesh, and why. `room`: bytes of each process; `local_size`: how many processes are on one machine.

    Replicas, if the whole fits; else sharded over the processes of one machine, copied over machines; else over all.
    Raises OptionError where it does not fit at all.
    """
    wanted = SHARE_OF_STATES * room
    local = local_size if world_size % local_size == 0 else world_size
    meshes = (Mesh(dp=world_size), Mesh(dp=world_size // local, fsdp=local), Mesh(fsdp=world_size))
    for mesh in meshes:
        share = need.total / mesh.fsdp
        if share <= wanted:
            why = (
                f"mesh={str(mesh)!r}: the model with gradients and optimizer takes {need}, {shown_bytes(share)} a "
                f"process, of {shown_bytes(room)}, whose {1 - SHARE_OF_STATES:.0%} are left to activations"
            )
            return mesh, why
    raise OptionError(
        f"mesh='auto' finds no room: the model with gradients and optimizer takes {need}, and {world_size} processes "
        f"have {shown_bytes(room)} each, of which {SHARE_OF_STATES:.0%} are for that; start more processes, or say a "
        "mesh with tp or pp"
    )


def choose_mesh(model: nn.Module, state_bytes: float, world: World) -> Mesh:
    """The mesh of this run, the same on all ranks; rank 0 logs the reason. Collective."""
    rooms, local_sizes = zip(*world.gather((process_memory_bytes(world.device), local_world_size())), strict=True)
    mesh, why = auto_mesh(needed(model, state_bytes), min(rooms), world.size, math.gcd(*local_sizes))
    if world.rank == 0:
        logger.warning(why)
    return mesh


def process_memory_bytes(device: torch.device) -> int:
    """What one process may have: its GPU's free memory, or its part of the machine's that is available."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory_bytes() // local_world_size()


def shown_bytes(size: float) -> str:
    """A size as people read it: `1.5 GiB`."""
    units = iter(("B", "KiB", "MiB", "GiB"))
    unit = next(units)
    for larger in units:
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"
