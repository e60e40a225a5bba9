"""Where ZeRO has each parameter's values, and how they become what checkpoints hold.

ZeRO lays parameters end to end and cuts that line into equal partitions, one a rank, wherever the cut falls. A
checkpoint knows no such line: it has every tensor under its name, in its shape. So each is put together from the ranks'
pieces, one at a time, and every rank keeps its share along the first dimension: what any mesh can read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor import empty as empty_dtensor

from headrace.train.dtensors import part, place, whole

STAGE_3 = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """What this rank's partition has of a parameter; empty where it has nothing."""

    flat: Tensor
    """The partition that the parameter belongs to, shape (values,), fp32; the optimizer's state is of it."""
    at: slice
    """Where in the partition."""
    of: slice
    """Which of the parameter's values, counted from its first."""


class Partitions:
    """The partitions of one DeepSpeed optimizer."""

    def __init__(self, zero: Any, stage: int, shapes: Mapping[nn.Parameter, torch.Size], devices: DeviceMesh) -> None:
        """`zero`: DeepSpeed's optimizer. `shapes`: of the trained parameters, before it took them."""
        self._zero = zero
        self._shapes = shapes
        self._devices = devices
        self._find = self._piece_of_stage_3 if stage == STAGE_3 else self._piece
        self._groups: dict[int, int] = {}
        if stage != STAGE_3:
            self._groups = {id(param): n for n, group in enumerate(zero.bit16_groups) for param in group}

    def piece(self, param: nn.Parameter) -> Piece:
        """This rank's piece of a trained parameter."""
        return self._find(param)

    def gathered(self, param: nn.Parameter, values: Tensor) -> Tensor:
        """Something of a partition's length, as the parameter's own: a tensor cut over the ranks. Collective."""
        piece, shape = self.piece(param), self._shapes[param]
        found = torch.zeros(shape.numel(), dtype=values.dtype, device=values.device)
        found[piece.of] = values[piece.at]
        dist.all_reduce(found)  # every value is of one rank, and 0 of the others
        return self.cut(found.view(shape))

    def cut(self, values: Tensor) -> Tensor:
        """This rank's share of values that all ranks have, as a tensor cut over them."""
        room = self.room(values.shape, values.dtype)
        part(room).copy_(values[place(room)])
        return room

    def room(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor of this shape, cut over the ranks along its first dimension; its values are any."""
        return empty_dtensor(*shape, dtype=dtype, device_mesh=self._devices, placements=[Shard(0)])

    def fill(self, param: nn.Parameter, values: Tensor, saved: Tensor) -> None:
        """Put this rank's piece of what `gathered` gave to its place in the partition's `values`. Collective."""
        piece = self.piece(param)
        values[piece.at] = whole(saved).reshape(-1)[piece.of].to(values)

    def _piece(self, param: nn.Parameter) -> Piece:
        flat = self._zero.single_partition_of_fp32_groups[self._groups[id(param)]]
        mapping: Any = param._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return Piece(flat, slice(0, 0), slice(0, 0))
        at, of = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Piece(flat, slice(at.start, at.start + at.numel), slice(of.start, of.start + of.numel))

    def _piece_of_stage_3(self, param: nn.Parameter) -> Piece:
        number, first, count = self._zero.grad_position[self._zero.get_param_id(param)]
        begin = min(dist.get_rank() * count, self._shapes[param].numel())
        length = min(count, self._shapes[param].numel() - begin)  # the last ones are filled up
        flat = self._zero.fp32_partitioned_groups_flat[number]
        return Piece(flat, slice(first, first + length), slice(begin, begin + length))
