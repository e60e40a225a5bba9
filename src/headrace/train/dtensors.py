"""Parameters of which each rank has a part (DTensor) beside those that every rank has whole.

Optimizers here work on the parts, which are plain tensors, and ask for sums over the whole where they need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from headrace.errors import TrainingError

_HALF = (torch.float16, torch.bfloat16)


def part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, own: Tensor) -> Tensor:
    """The tensor of which every rank has the part `own`, cut as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return own
    return DTensor.from_local(
        own, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank. Collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def place(tensor: Tensor) -> tuple[slice, ...]:
    """Where this rank's part lies in the whole: a slice a dimension."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(first, first + size) for first, size in zip(offset, shape, strict=True))


def squared_norms(parts: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """The squared norm of each whole tensor, at least fp32, shape (n,). `like`: the tensors that these are parts of.

    Collective where some are sharded: one small sum for all that are cut alike.
    """
    dtype = max((torch.promote_types(one.dtype, torch.float32) for one in parts), key=lambda dtype: dtype.itemsize)
    return summed(torch.stack(torch._foreach_norm(list(parts), 2, dtype=dtype)).square_(), like)


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """Of all gradients together, of no dimension; of those that are cut, of the whole ones. Collective for these."""
    if any(isinstance(grad, DTensor) for grad in grads):
        return squared_norms([part(grad) for grad in grads], grads).sum().sqrt()
    wide = torch.float32 if grads[0].dtype in _HALF else None  # which what a half holds may not be enough for
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(grads), 2, dtype=wide)))
    return norm


def summed(sums: Tensor, like: Sequence[Tensor]) -> Tensor:
    """Sums over whole tensors from those over this rank's parts: row i belongs to the i-th of `like`. Collective."""
    alike: dict[Any, list[int]] = {}
    for number, tensor in enumerate(like):
        if isinstance(tensor, DTensor):
            alike.setdefault((tensor.device_mesh, tensor.placements), []).append(number)
    for (mesh, placements), numbers in alike.items():
        some = sums if len(numbers) == len(like) else sums[numbers]
        for axis, placement in enumerate(placements):
            if placement.is_partial():
                raise TrainingError(f"a sharded parameter must be summed before it is used: got {placements}")
            if not placement.is_replicate():
                dist.all_reduce(some, group=mesh.get_group(axis))
        if some is not sums:
            sums[numbers] = some
    return sums
