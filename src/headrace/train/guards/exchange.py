"""A few integers of every rank, gathered while the next step runs.

A gather is started after a step and read after the next: by then every rank has started it, because no step ends
without all of them. So nobody waits for it.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from headrace.train.world import World


class Exchange:
    """At most one gather, on its way."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._table: Tensor | None = None
        self._work: dist.Work | None = None

    @property
    def pending(self) -> bool:
        """Whether there is one."""
        return self._table is not None

    def launch(self, row: Tensor) -> None:
        """Begin gathering one row a rank, int64 of the same shape (n,) on all. Collective."""
        self._table = row.new_empty(self._world.size, len(row))
        if self._world.size > 1:
            self._work = dist.all_gather_into_tensor(self._table.view(-1), row, async_op=True)
        else:
            self._table.copy_(row)

    def read(self) -> list[list[int]]:
        """The rows by rank; on a GPU waits for the device."""
        assert self._table is not None
        if self._work is not None:
            self._work.wait()
        rows: list[list[int]] = self._table.tolist()
        self._table = self._work = None
        return rows


def row_of(fingerprint: Tensor, *numbers: int) -> Tensor:
    """A row from what lies on the device and what the host knows."""
    return torch.cat([fingerprint, torch.tensor(numbers, dtype=torch.int64, device=fingerprint.device)])
