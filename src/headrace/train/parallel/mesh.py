"""The mesh: along which axes the processes of a run divide the work, written as `axis=size` pairs.

Data parallelism (`dp`: every process holds the whole model and its share of each global batch) is the one axis that
this release knows; the others are refused by name.
"""

from __future__ import annotations

import re

from headrace.errors import OptionError

_AXES = ("dp",)


def parse_mesh(text: str) -> dict[str, int | None]:
    """The axes of a mesh like "dp" or "dp=2" and their sizes; None: as many as there are processes.

    Raises OptionError for anything else.
    """
    axes: dict[str, int | None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z]+)\s*(?:=\s*([1-9][0-9]*))?\s*", part)
        if match is None or match[1] not in _AXES or match[1] in axes:
            raise OptionError(f"mesh must be 'dp' or 'dp=N' (data parallel is what this release has): got {text!r}")
        axes[match[1]] = int(match[2]) if match[2] else None
    return axes


def check_mesh(text: str, world_size: int) -> None:
    """Raise OptionError unless the mesh takes exactly `world_size` processes."""
    size = parse_mesh(text)["dp"]
    if size not in (None, world_size):
        raise OptionError(
            f"the mesh's sizes must multiply to the number of processes: got mesh={text!r} on {world_size}; "
            f"say mesh='dp', or start {size} processes"
        )
