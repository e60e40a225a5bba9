"""PowerSGD (Vogels, Karimireddy and Jaggi, 2019): a matrix of gradients M sent as P Q', two thin matrices.

Each step is one turn of a power iteration: P = M Q, averaged over the ranks and made orthonormal; Q = M' P, averaged. Q
is where the next step begins, and M - P Q' is added to its gradient.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import GradBucket  # type: ignore[attr-defined]

from headrace.train.parallel.compression.memory import Memory
from headrace.train.parallel.compression.wire import Wire

_LEAST_GAIN = 2
"""A matrix is sent as two when these have at least so many times fewer elements."""


class LowRank:
    """Sends matrices as two thin ones, and the rest as it is."""

    def __init__(self, wire: Wire, memory: Memory, rank: int) -> None:
        self._wire = wire
        self._memory = memory
        self._rank = rank

    def __call__(self, bucket: GradBucket, names: list[str]) -> Generator[dist.Work, None, None]:
        """Average a bucket: the first factors with the rest in one sum, the second ones in another."""
        rest: list[Tensor] = []
        matrices: dict[str, Tensor] = {}
        for name, gradient in zip(names, bucket.gradients(), strict=True):
            matrix = self._matrix(gradient)
            if matrix is None:
                rest.append(gradient.div_(self._wire.size))
            else:
                matrices[name] = self._memory.add_error(name, matrix)
        before = {name: _orthonormal(self._factor(name, matrix)) for name, matrix in matrices.items()}
        firsts = [matrix @ before[name] for name, matrix in matrices.items()]
        sums = _flat([*rest, *firsts])
        yield self._wire.sum(sums)
        wholes = _parts(sums, [*rest, *firsts])
        for gradient, whole in zip(rest, wholes, strict=False):
            gradient.copy_(whole)
        if not matrices:
            return
        firsts = [_orthonormal(first) for first in wholes[len(rest) :]]
        seconds = [matrix.t() @ first for matrix, first in zip(matrices.values(), firsts, strict=True)]
        sums = _flat(seconds).div_(self._wire.size)
        yield self._wire.sum(sums)
        for (name, matrix), first, second in zip(matrices.items(), firsts, _parts(sums, seconds), strict=True):
            sent = first @ second.t()
            self._memory.keep(name, matrix - sent)
            self._memory.factors[name] = torch.where(second.isfinite(), second, before[name])
            matrix.copy_(sent)

    def _matrix(self, gradient: Tensor) -> Tensor | None:
        """The gradient as a matrix, in its own memory; None where two factors would not be small enough."""
        if gradient.dim() < 2:
            return None
        matrix = gradient.view(len(gradient), -1)
        height, width = matrix.shape
        return matrix if (height + width) * self._rank * _LEAST_GAIN <= height * width else None

    def _factor(self, name: str, matrix: Tensor) -> Tensor:
        """Where the iteration begins: where it ended in the last step; at first, at the same numbers on every rank."""
        found = self._memory.factors.get(name)
        if found is not None and found.shape == (matrix.shape[1], self._rank):
            return found
        numbers = torch.Generator().manual_seed(matrix.numel())
        return torch.randn(matrix.shape[1], self._rank, generator=numbers).to(matrix)


def _orthonormal(matrix: Tensor) -> Tensor:
    """Columns of length 1 that span what these do, and more where these depend on each other."""
    basis: Tensor = torch.linalg.qr(matrix.float()).Q
    return basis.to(matrix.dtype)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _parts(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]
