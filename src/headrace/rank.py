"""Which rank of how many this process is, for the data axes, without importing torch.

The one place outside `train` that knows launchers. The first that is set wins: arguments, what a mesh with tensor or
pipeline parallel processes said of this one, an initialised torch.distributed, then the environment of torchrun, Slurm
(inside a step only), Open MPI, Horovod or Ray.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.errors import OptionError

# Rank and world size variables of each launcher. Slurm sets SLURM_NTASKS in the batch script too, where only one
# process runs; SLURM_STEP_ID is set inside a step alone, so it is asked for as well.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", None),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", None),
    ("HOROVOD_RANK", "HOROVOD_SIZE", None),
    ("RAY_TRAIN_WORLD_RANK", "RAY_TRAIN_WORLD_SIZE", None),
)
_LOCAL_WORLD_SIZES = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "HOROVOD_LOCAL_SIZE")


@dataclass(frozen=True, slots=True)
class Rank:
    """This process among its peers: 0 <= rank < world_size."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise OptionError(
                f"rank must be at least 0 and below the world size: got rank {self.rank} of {self.world_size}"
            )


_of_mesh: Rank | None = None


def set_data_rank(rank: Rank | None) -> None:
    """Say which share of the data this process has, where processes share one; None: as many shares as processes.

    For loaders that have not been asked for their length or a batch.
    """
    global _of_mesh
    _of_mesh = rank


def resolve_rank(
    rank: int | None = None, world_size: int | None = None, environ: Mapping[str, str] = os.environ
) -> Rank:
    """The rank and world size given, else the mesh's, torch.distributed's, the launcher's, else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise OptionError(f"rank and world_size go together: got rank={rank}, world_size={world_size}")
    if rank is not None and world_size is not None:
        return Rank(rank, world_size)
    return _of_mesh or process_rank(environ)


def process_rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """This process among all of the run, whichever share of the data it has."""
    return _from_torch() or _from_environment(environ) or Rank()


def check_unchanged(counted: Rank, now: Rank) -> None:
    """Raise OptionError where a loader counted its steps before a mesh said whose share this process has."""
    if now != counted:
        raise OptionError(
            f"this loader counted its steps for rank {counted.rank} of {counted.world_size}, and the mesh gives this "
            f"process share {now.rank} of {now.world_size}: with tp or pp do not ask a loader for its length before "
            "the Trainer's fit, or give it rank and world_size"
        )


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """How many ranks share this machine, as far as the launcher says; else 1."""
    for name in _LOCAL_WORLD_SIZES:
        if environ.get(name, "").isdigit():
            return max(1, int(environ[name]))
    return 1


def _from_torch() -> Rank | None:
    torch = sys.modules.get("torch")
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return Rank(torch.distributed.get_rank(), torch.distributed.get_world_size())


def _from_environment(environ: Mapping[str, str]) -> Rank | None:
    for rank, world_size, needed in _LAUNCHERS:
        if rank in environ and world_size in environ and (needed is None or needed in environ):
            try:
                return Rank(int(environ[rank]), int(environ[world_size]))
            except ValueError as err:
                raise OptionError(
                    f"{rank} and {world_size} must be whole numbers: got {environ[rank]!r} and {environ[world_size]!r}"
                ) from err
    return None
