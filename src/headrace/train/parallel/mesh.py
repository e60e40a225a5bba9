"""The mesh: along which axes the processes of a run divide the work, written as `axis=size` pairs.

Along `dp` every process holds the whole model, along `fsdp` a part of each parameter; along both each has its share of
every global batch. With both, `fsdp` counts the processes that hold one model together, and they are neighbours: the
ranks of one machine.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from headrace.errors import OptionError

AXES = ("dp", "fsdp")


@dataclass(frozen=True, slots=True)
class Mesh:
    """How many processes lie along each axis; their product is the number of all."""

    dp: int = 1
    fsdp: int = 1

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
    """The axes of a mesh like "dp", "fsdp=2" or "dp=2,fsdp=4" and their sizes; None: what the others leave.

    Raises OptionError for anything else.
    """
    axes: dict[str, int | None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z]+)\s*(?:=\s*([1-9][0-9]*))?\s*", part)
        if match is None or match[1] not in AXES or match[1] in axes:
            raise OptionError(
                "mesh must be axis=size pairs of dp (replicas) and fsdp (sharded), such as 'dp=2,fsdp=4', which are "
                f"the axes of this release: got {text!r}"
            )
        axes[match[1]] = int(match[2]) if match[2] else None
    if list(axes.values()).count(None) > 1:
        raise OptionError(f"mesh may leave out the size of one axis, which has what the others leave: got {text!r}")
    return axes
