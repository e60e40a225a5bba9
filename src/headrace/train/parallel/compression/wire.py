"""The collectives that average gradients, and the bytes that are handed to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Traffic:
    """Gradients of one or more steps on their way from one rank."""

    sent_bytes: int
    """What the rank handed to collectives."""
    saved_bytes: int
    """How much less that is than the gradients themselves."""

    def __add__(self, other: Traffic | None) -> Traffic:
        if other is None:
            return self
        return Traffic(self.sent_bytes + other.sent_bytes, self.saved_bytes + other.saved_bytes)


class Wire:
    """Starts collectives over all ranks, and counts."""

    def __init__(self) -> None:
        self._gradients = self._sent = 0

    @property
    def size(self) -> int:
        """How many ranks take part."""
        return dist.get_world_size()

    def carry(self, gradients: Tensor) -> None:
        """Note gradients that are to be averaged, however that is done."""
        self._gradients += gradients.nbytes

    def sum(self, tensor: Tensor) -> dist.Work:
        """Begin adding up a tensor over the ranks, in its own memory."""
        self._sent += tensor.nbytes
        return self._begun(dist.all_reduce(tensor, async_op=True))

    def gather(self, tensor: Tensor) -> tuple[dist.Work, list[Tensor]]:
        """Begin bringing the tensors of all ranks to each; they will lie in those returned, by rank."""
        self._sent += tensor.nbytes
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        return self._begun(dist.all_gather(found, tensor, async_op=True)), found

    def take(self) -> Traffic | None:
        """What was counted since the last call; None: nothing."""
        if not self._gradients:
            return None
        traffic = Traffic(self._sent, self._gradients - self._sent)
        self._gradients = self._sent = 0
        return traffic

    @staticmethod
    def _begun(work: dist.Work | None) -> dist.Work:
        assert work is not None
        return work
