"""The mesh: along which axes the processes of a run divide the work, written as `axis=size` pairs.

Along `dp` every process holds the whole model, along `fsdp` a part of each parameter; along both each has its share of
every global batch. Along `tp` processes compute each layer together, along `pp` one after the other, on the same share.
Ranks count fastest along `tp`, which communicates most, then `fsdp`, `dp` and `pp`: neighbours are on one machine.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from headrace.errors import OptionError
from headrace.rank import Rank
from headrace.train.world import wait_as_all

AXES = ("pp", "dp", "fsdp", "tp")
"""From the slowest of the ranks to the fastest."""

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Mesh:
    """How many processes lie along each axis; their product is the number of all."""

    dp: int = 1
    fsdp: int = 1
    tp: int = 1
    pp: int = 1

    def __str__(self) -> str:
        """As it is written: "dp=2,tp=2"."""
        axes = self.axes
        return ",".join(f"{axis}={axes[axis]}" for axis in ("dp", "fsdp", "tp", "pp") if axis in axes) or "dp=1"

    @property
    def axes(self) -> dict[str, int | None]:
        """Its axes of more than one process, and their sizes."""
        return {axis: getattr(self, axis) for axis in AXES if getattr(self, axis) > 1}

    @property
    def data_size(self) -> int:
        """Into how many shares a global batch is cut."""
        return self.dp * self.fsdp

    def data_rank(self, rank: int) -> Rank:
        """Whose share a process has: those that compute together, or one after the other, have the same."""
        return Rank(rank // self.tp % self.data_size, self.data_size)

    def devices(self, device: torch.device) -> DeviceMesh:
        """Groups of processes along every axis that a model is cut or copied along. Collective.

        `fsdp` is always among them: a model that is copied beside being cut otherwise is sharded over one process.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        kept = {axis: size for axis, size in sizes.items() if size > 1 or axis == "fsdp"}
        made = init_device_mesh(device.type, tuple(kept.values()), mesh_dim_names=tuple(kept))
        wait_as_all(made.get_all_groups(), device)
        return made

    @classmethod
    def of(cls, text: str, world_size: int) -> Mesh:
        """A mesh of exactly `world_size` processes; an axis without a size has what the others leave.

        Raises OptionError for sizes that do not multiply to it.
        """
        axes = parse_mesh(text)
        given = math.prod(size for size in axes.values() if size is not None)
        bare = [axis for axis, size in axes.items() if size is None]
        if world_size % given or (not bare and given != world_size):
            fewer = f"say mesh={next(iter(axes))!r}, or " if len(axes) == 1 else ""
            raise OptionError(
                f"the mesh's sizes must multiply to the number of processes: got mesh={text!r} on {world_size}; "
                f"{fewer}start {f'a multiple of {given}' if bare else given} processes"
            )
        return cls(**{axis: world_size // given if size is None else size for axis, size in axes.items()})


def parse_mesh(text: str) -> dict[str, int | None]:
    """The axes of a mesh like "dp", "fsdp=2" or "dp=2,tp=4" and their sizes; None: what the others leave.

    Of "auto", which is decided later, none. Raises OptionError for anything else.
    """
    if text == AUTO:
        return {}
    axes: dict[str, int | None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z]+)\s*(?:=\s*([1-9][0-9]*))?\s*", part)
        if match is None or match[1] not in AXES or match[1] in axes:
            raise OptionError(
                "mesh must be axis=size pairs of dp (replicas), fsdp (sharded), tp (tensor parallel) and pp "
                f"(pipeline), such as 'dp=2,fsdp=4': got {text!r}"
            )
        axes[match[1]] = int(match[2]) if match[2] else None
    if list(axes.values()).count(None) > 1:
        raise OptionError(f"mesh may leave out the size of one axis, which has what the others leave: got {text!r}")
    return axes
