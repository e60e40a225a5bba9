"""The processes of a run: which of them this one is, on which device, and the few things they say to each other.

With one process nothing here communicates. With several, torch.distributed carries it: gloo on CPUs, NCCL between
GPUs with gloo beside it for what lives in host memory. A collective waits a limited time, so that a peer that hangs
ends the job (a watchdog does so earlier, and says who); one that died ends it at once: its connections close.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from headrace.errors import HeadraceError, OptionError, StorageError
from headrace.rank import resolve_rank
from headrace.train.gloo import settle

T = TypeVar("T")

TIMEOUT = timedelta(minutes=5)
"""Longer than any rank may be ahead of another: a slow first read, a checkpoint, an evaluation."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among the run's processes, and its device."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    """In which they speak; None: the one of all training."""

    def apart(self) -> World:
        """The same processes in a group of their own, for what a thread says beside the training. Collective.

        A rank that writes a large checkpoint may come late, so there they wait longer for each other.
        """
        return self if self.size == 1 else replace(self, group=dist.new_group(backend="gloo", timeout=6 * TIMEOUT))

    def agree(self, decide: Callable[[], T]) -> T:
        """On every rank what `decide` returns, or raises, on rank 0. Collective.

        What it raises must be an error of ours, or the system's, which becomes StorageError.
        """
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = decide()
            except HeadraceError as err:
                answer[1] = err
            except OSError as err:
                answer[1] = StorageError(f"{err.filename}: {err.strerror}; check the run's folder")
        if self.size > 1:
            dist.broadcast_object_list(answer, src=0, group=self.group)
        if answer[1] is not None:
            raise answer[1]
        result: T = answer[0]
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank. Collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def part(self) -> None:
        """Wait for all ranks at the end of their common work. Collective.

        Leaving while a peer still communicates would end it with an abort.
        """
        if self.size > 1:
            dist.barrier()
            settle()


def join_world(device: str | torch.device | None = None, timeout: timedelta = TIMEOUT) -> World:
    """This process's place; joins torch.distributed first where a launcher started several processes.

    The group is the launcher's business to describe (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); one that is
    initialised already is used as it is. A group made here is left when the process exits; its collectives wait at most
    `timeout`.
    """
    chosen = _device(device)
    if not dist.is_initialized() and _launched():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout)
        atexit.register(leave_world)
    if not dist.is_initialized():
        place = resolve_rank()
        if place.world_size > 1:
            raise OptionError(
                f"{place.world_size} processes need an address to meet at: MASTER_ADDR and MASTER_PORT are not set; "
                "start them with `headrace train` or torchrun"
            )
        return World(0, 1, chosen)
    return World(dist.get_rank(), dist.get_world_size(), chosen)


def wait_as_all(groups: Iterable[dist.ProcessGroup], device: torch.device) -> None:
    """Have collectives of groups wait as long as those of all processes do: torch gives new groups half an hour."""
    everybody = dist.group.WORLD
    assert everybody is not None
    timeout = everybody._get_backend(device).options._timeout
    for group in groups:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def leave_world() -> None:
    """Leave torch.distributed, if joined."""
    if dist.is_initialized():
        settle()  # collectives may have followed the run: a whole state of sharded parameters, say
        dist.destroy_process_group()


def _launched() -> bool:
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def _device(device: str | torch.device | None) -> torch.device:
    """The device given, else a GPU if there is one, else the CPU. "cuda" is this process's, by its number there."""
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if str(chosen) == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise OptionError(f"device={str(chosen)!r} needs a CUDA device: this torch sees none; say device='cpu'")
        torch.cuda.set_device(chosen)
    return chosen
