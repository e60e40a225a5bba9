"""One model on every rank, with gradients averaged over the ranks while backward still runs.

This is DistributedDataParallel with a hook that has a `Reducer` average each bucket of gradients, and notes when the
last one was handed over: what backward takes after that moment is communication that no compute hid.
"""

# No postponed annotations here: DistributedDataParallel looks at those of its hook.
import time
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from headrace.train.parallel.buffers import share
from headrace.train.parallel.compression import Reducer
from headrace.train.parallel.exposed import NOTHING, Exposed
from headrace.train.world import World


class _HostTimer:
    def __init__(self) -> None:
        self._handed_over = self._ended = 0.0

    def hand_over(self) -> None:
        self._handed_over = time.perf_counter()

    def end(self) -> None:
        self._ended = time.perf_counter()

    def exposed(self) -> Exposed:
        return Exposed(self._ended - self._handed_over, to_the_end=True)


class _DeviceTimer:
    def __init__(self) -> None:
        self._renew()

    def _renew(self) -> None:
        self._handed_over = torch.cuda.Event(enable_timing=True)
        self._ended = torch.cuda.Event(enable_timing=True)

    def hand_over(self) -> None:
        self._handed_over.record()

    def end(self) -> None:
        self._ended.record()

    def exposed(self) -> Exposed:
        marks = (self._handed_over, self._ended)
        self._renew()
        return Exposed(marks=marks, to_the_end=True)


_REDUCES = nullcontext()


def _reduce(state: tuple[_HostTimer | _DeviceTimer, Reducer], bucket: GradBucket) -> torch.futures.Future[Tensor]:
    timer, reducer = state
    if bucket.is_last():
        timer.hand_over()
    return reducer.reduce(bucket)


class Replica:
    """The model as a rank trains it. With one process that is the model itself."""

    needs_equal_passes = False
    """Whether every rank must call the model equally often in a step."""

    def __init__(self, model: nn.Module, world: World, reducer: Reducer) -> None:
        self.model = model
        """The user's module."""
        self.module: nn.Module = model
        """What to call in training."""
        self._timer: _HostTimer | _DeviceTimer | None = None
        if world.size > 1:
            # Said of every convolution over one channel, whose strides can be read in two ways: nothing to act on.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            on_device = world.device.type == "cuda"
            ddp = DistributedDataParallel(
                model, device_ids=[world.device] if on_device else None, gradient_as_bucket_view=True
            )
            self._timer = _DeviceTimer() if on_device else _HostTimer()
            ddp.register_comm_hook((self._timer, reducer), _reduce)
            self.module = ddp

    def reducing(self, reduce: bool) -> AbstractContextManager[Any]:
        """Whether the backward pass inside reduces gradients (the last of a step) or only adds them up."""
        if reduce or not isinstance(self.module, DistributedDataParallel):
            return _REDUCES
        no_sync: AbstractContextManager[Any] = self.module.no_sync()
        return no_sync

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes rank 0's values. Collective."""
        share(tensors)

    def settle(self) -> None:
        """After forward passes that no backward pass follows: nothing is to be put back."""

    def end_backward(self) -> None:
        """Note that the step's communication is over."""
        if self._timer is not None:
            self._timer.end()

    def exposed(self) -> Exposed:
        """How long the last backward pass waited for its reduction."""
        return NOTHING if self._timer is None else self._timer.exposed()
