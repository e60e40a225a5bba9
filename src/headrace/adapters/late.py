"""A number that a CUDA device is still to compute, fetched behind the loop."""

from __future__ import annotations

import torch
from torch import Tensor


class Late:
    """Copied to pinned memory when the device comes to it; nobody waits until `value` is asked for."""

    def __init__(self, number: Tensor) -> None:
        """`number` has one element; what becomes of it later does not matter."""
        self._host = torch.empty((), dtype=number.dtype, pin_memory=True)
        self._host.copy_(number.detach().reshape(()), non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(number.device))

    @property
    def is_there(self) -> bool:
        """Whether `value` waits no more."""
        there: bool = self._event.query()
        return there

    def value(self) -> float:
        """The number, waited for."""
        self._event.synchronize()
        return float(self._host)
