"""To the accelerator: batches are copied from pinned slots on a side stream, some ahead of use.

The copy of a batch runs while the model computes on the one before; the trainer's stream waits for it on the device,
never the host. A slot is given back once its copy is done.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.errors import HeadraceError, LoaderError, OptionError
from headrace.load.job import Delivery
from headrace.load.process import ProcessLostError
from headrace.load.tensors import BatchDict

BATCHES_AHEAD = 2


def cuda_device(device: str | torch.device | None) -> torch.device | None:
    """The CUDA device that is meant, or None for the CPU; OptionError for anything else."""
    if device is None:
        return None
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as err:
        raise OptionError(f"device is None, cpu, or a CUDA device of this machine: got {device!r}") from err
    if wanted.type == "cpu":
        return None
    if wanted.type != "cuda" or not torch.cuda.is_available():
        raise OptionError(f"device is None, cpu, or a CUDA device of this machine: got {device}")
    return wanted


class PinnedMap(mmap.mmap):
    """A map of a slot whose memory is locked in place, so that the device can copy from it by itself."""

    _pointer: int | None = None

    def __init__(self, fd: int, size: int) -> None:
        pointer = np.frombuffer(self, np.uint8).ctypes.data
        code = int(torch.cuda.cudart().cudaHostRegister(pointer, size, 0))
        if code != 0:
            raise LoaderError(f"cannot pin {size:,} bytes for copies to the device: CUDA error {code}")
        self._pointer = pointer

    def __del__(self) -> None:
        # Before the memory is unmapped: the next map may lie at the same address.
        if self._pointer is not None:
            torch.cuda.cudart().cudaHostUnregister(self._pointer)


@dataclass(slots=True)
class _Copy:
    moved: BatchDict
    host: BatchDict
    done: torch.cuda.Event
    delivery: Delivery


class DeviceQueue:
    """Batches on their way to a CUDA device. Not thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._ahead: deque[_Copy] = deque()
        self._copying: list[_Copy] = []
        self._failure: Exception | None = None

    def next(
        self, receive: Callable[[], tuple[BatchDict, Delivery]], ready: Callable[[], bool]
    ) -> tuple[BatchDict, Delivery]:
        """The next batch, on the device; those that are ready behind it are sent on their way.

        An error comes in its turn, after the batches that were received before it.
        """
        if not self._ahead:
            self._raise_failure()
            self._push(*receive())
        while len(self._ahead) <= BATCHES_AHEAD and self._failure is None and ready():
            try:
                self._push(*receive())
            except (HeadraceError, ProcessLostError) as err:
                self._failure = err
        return self._pop()

    def clear(self) -> None:
        """Forget what is on its way; slots are given back once nothing copies from them."""
        self._stream.synchronize()
        self._ahead.clear()
        self._copying.clear()
        self._failure = None

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _push(self, batch: BatchDict, delivery: Delivery) -> None:
        with torch.cuda.stream(self._stream):
            moved = {name: self._moved(value) for name, value in batch.items()}
            done = torch.cuda.Event()
            done.record(self._stream)
        self._ahead.append(_Copy(moved, batch, done, delivery))

    def _pop(self) -> tuple[BatchDict, Delivery]:
        copy = self._ahead.popleft()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copy.done)
        for value in copy.moved.values():
            for tensor in value if isinstance(value, list) else [value]:
                if isinstance(tensor, torch.Tensor):
                    tensor.record_stream(current)
        self._copying = [one for one in (*self._copying, copy) if not one.done.query()]
        return copy.moved, copy.delivery

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self._device, non_blocking=True)
        if isinstance(value, list) and any(isinstance(one, torch.Tensor) for one in value):
            return [self._moved(one) if isinstance(one, torch.Tensor) else one for one in value]
        return value
