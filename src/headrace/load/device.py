"""To the accelerator: batches are copied from pinned slots on a side stream, some ahead of use.

The copy of a batch, and the steps on it, run while the model computes on the one before; the trainer's stream waits for
them on the device, never the host. A slot is given back once nothing on the device reads it.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from headrace.errors import HeadraceError, LoaderError, OptionError
from headrace.load.job import Delivery
from headrace.load.ondevice import OnDevice
from headrace.load.process import ProcessLostError
from headrace.load.tensors import BatchDict
from headrace.ondevice.steps import tensors_of

BATCHES_AHEAD = 2
_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device, not for the current one alone."""


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
    if wanted.type != "cuda" or (wanted.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device is None, cpu, or a CUDA device of this machine: got {device}")
    return wanted


class PinnedMap(mmap.mmap):
    """A map of a slot whose memory is locked in place, so that the device can copy from it by itself."""

    _pid: int | None = None

    def __init__(self, fd: int, size: int) -> None:
        runtime = torch.cuda.cudart()
        self._pointer = np.frombuffer(self, np.uint8).ctypes.data
        code = int(runtime.cudaHostRegister(self._pointer, size, _PORTABLE))
        if code != 0:
            raise LoaderError(f"cannot pin {size:,} bytes for copies to the device: CUDA error {code}")
        self._unregister = runtime.cudaHostUnregister  # held: at the interpreter's end torch.cuda may be gone first
        self._getpid = os.getpid
        self._pid = os.getpid()

    def __del__(self) -> None:
        # Before the memory is unmapped: the next map may lie at the same address. A forked process has no CUDA.
        if self._pid is not None and self._getpid() == self._pid:
            self._unregister(self._pointer)


@dataclass(slots=True)
class _Copy:
    moved: BatchDict
    done: torch.cuda.Event
    delivery: Delivery


class DeviceQueue:
    """Batches on their way to a CUDA device. Not thread-safe."""

    def __init__(self, device: torch.device, steps: OnDevice) -> None:
        """`device` without an index is the current one, now and later."""
        self._stream = torch.cuda.Stream(device)
        self._device = self._stream.device
        self._steps = steps
        self._ahead: deque[_Copy] = deque()
        self._sources: list[tuple[BatchDict, torch.cuda.Event]] = []
        """Batches on the host that the device may read still, and when it no longer does."""
        self._failure: Exception | None = None

    def map(self, fd: int, size: int) -> PinnedMap:
        """A slot, mapped and pinned. On the queue's device: another would be given a context for nothing."""
        with torch.cuda.device(self._device):
            return PinnedMap(fd, size)

    def next(
        self, receive: Callable[[], tuple[BatchDict, Delivery]], ready: Callable[[], bool]
    ) -> tuple[BatchDict, Delivery]:
        """The next batch, on the device; those that are ready behind it are sent on their way.

        An error comes in its turn, after the batches that were received before it.
        """
        self._sources = [(batch, done) for batch, done in self._sources if not done.query()]
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
        """Forget what is on its way; slots are given back once nothing copies from them.

        RuntimeError where the device has failed: all the same nothing is held any more.
        """
        try:
            self._stream.synchronize()
        finally:
            self._ahead.clear()
            self._sources.clear()
            self._failure = None

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _push(self, batch: BatchDict, delivery: Delivery) -> None:
        with torch.cuda.stream(self._stream):
            moved = self._steps(batch, self._move, delivery)
            done = torch.cuda.Event()
            done.record(self._stream)
        self._sources.append((batch, done))
        self._ahead.append(_Copy(moved, done, delivery))

    def _pop(self) -> tuple[BatchDict, Delivery]:
        copy = self._ahead.popleft()
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copy.done)
        for tensor in tensors_of(copy.moved):
            if tensor.is_cuda:  # memory of the side stream: not to be used again before this one is done with it
                tensor.record_stream(current)
        return copy.moved, copy.delivery

    def _move(self, batch: BatchDict) -> BatchDict:
        return {name: self._moved(value) for name, value in batch.items()}

    def _moved(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self._device, non_blocking=True)
        if isinstance(value, list) and any(isinstance(one, torch.Tensor) for one in value):
            return [self._moved(one) if isinstance(one, torch.Tensor) else one for one in value]
        return value
