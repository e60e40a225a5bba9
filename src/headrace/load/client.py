"""The trainer's side of a loader process: start it, ask it, take what it delivers, end it."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence

import cloudpickle
import numpy as np
import torch

from headrace.errors import HeadraceError, LoaderError, OptionError
from headrace.load.channel import Frame, Kind, send_frame
from headrace.load.device import BATCHES_AHEAD, DeviceQueue, cuda_device
from headrace.load.healing import Restarts
from headrace.load.job import SPARE_SLOTS, Delivery, Job, NoMemoryError, num_lanes
from headrace.load.ondevice import OnDevice
from headrace.load.process import Process, ProcessLostError
from headrace.load.slots import MappedSlots
from headrace.load.tensors import BatchDict, batch_over
from headrace.ondevice import BatchStep


def num_slots_held(device: str | torch.device | None) -> int:
    """How many slots the trainer's side needs, besides those that are ready or being filled."""
    return SPARE_SLOTS if cuda_device(device) is None else SPARE_SLOTS + BATCHES_AHEAD


class Client:
    """A running loader process. Not thread-safe, and of use only in the process that made it."""

    def __init__(
        self, job: Job, device: str | torch.device | None, restarts: Restarts, on_device: Sequence[BatchStep] = ()
    ) -> None:
        """`restarts` gets those of the process's own worker processes; `on_device` are steps on whole batches."""
        cuda = cuda_device(device)
        self._on_device = OnDevice.of(on_device, job.order.seed, job.batches)
        self._on_device.steps.check_device(on_cuda=cuda is not None)
        self._device_queue = DeviceQueue(cuda, self._on_device) if cuda else None
        self._num_held = num_slots_held(device)
        self._restarts = restarts
        description = _described(job)
        reading, self._orders = os.pipe()
        try:
            self._process = Process("headrace.load.child", num_lanes(job), job.hang_timeout_sec, reading)
        except BaseException:
            os.close(self._orders)
            raise
        finally:
            os.close(reading)
        self._slots = MappedSlots(self._orders, self._device_queue.map if self._device_queue else mmap.mmap)
        self._generation = 0
        self._pid = os.getpid()
        self.usable = True
        """False once it has ended, or an interrupt has torn a message: then only a new one goes on."""
        try:
            with contextlib.suppress(ProcessLostError):  # `next` says how
                self._process.send_bytes(description)
        except BaseException:  # an interrupt: nobody else would end the process
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The loader process's id."""
        return self._process.pid

    def start(self, epoch: int, step: int) -> None:
        """Have it deliver from here on, whatever it was doing."""
        if self._device_queue:
            self._device_queue.clear()
        self._generation += 1
        send_frame(self._orders, Frame(Kind.START, self._generation, epoch, step))

    def next(self) -> tuple[BatchDict, Delivery]:
        """The next batch, waiting for it. Raises the error that is delivered in its place, or ProcessLostError."""
        if os.getpid() != self._pid:
            raise LoaderError("a loader works in the process that made it: make another one in this forked process")
        self.usable = False  # until the delivery is in hand and dealt with: an interrupt may come anywhere
        try:
            if self._device_queue:
                found = self._device_queue.next(self._next_on_host, self._process.has_message)
            else:
                batch, delivery = self._next_on_host()
                found = self._on_device(batch, lambda batch: batch, delivery), delivery
        except HeadraceError:
            self.usable = True
            raise
        self.usable = True
        return found

    def close(self) -> None:
        """End the process. Batches that are held stay valid."""
        if os.getpid() != self._pid:
            return  # it is another process's
        try:
            if self._device_queue:
                self._device_queue.clear()
        finally:  # also where the device has failed: the process must not stay
            self._slots.close()
            send_frame(self._orders, Frame(Kind.END, 0))
            os.close(self._orders)
            self._process.end()

    def _next_on_host(self) -> tuple[BatchDict, Delivery]:
        while (delivery := self._receive()).generation != self._generation:
            self._give_back(delivery)
        if isinstance(delivery.error, NoMemoryError):
            raise ProcessLostError(str(delivery.error), [])
        try:
            if delivery.error is not None:
                raise delivery.error
            return self._batch(delivery), delivery
        except HeadraceError:
            self._give_back(delivery)
            raise

    def _give_back(self, delivery: Delivery) -> None:
        if delivery.slot >= 0:
            self._slots.give_back(delivery.slot)

    def _receive(self) -> Delivery:
        delivery: Delivery
        delivery, fds = self._process.receive()
        for fd in fds:
            self._slots.add(delivery.slot, fd)
        for restart in delivery.restarts:
            self._restarts.note(restart)
        return delivery

    def _batch(self, delivery: Delivery) -> BatchDict:
        """The batch over its slot; or over a copy, where so many are held that the feed would starve of slots."""
        if delivery.used_bytes and self._slots.num_held < self._num_held:
            return batch_over(self._slots.lease(delivery.slot, delivery.slot_bytes), delivery)
        view = self._slots.view(delivery.slot, delivery.slot_bytes) if delivery.used_bytes else b""
        batch = batch_over(np.frombuffer(view, np.uint8, delivery.used_bytes).copy(), delivery)
        self._slots.give_back(delivery.slot)
        return batch


def _described(job: Job) -> bytes:
    try:
        return cloudpickle.dumps(job)  # type: ignore[no-any-return]
    except Exception as err:
        raise OptionError(
            f"the stream's functions must be such that they can be sent to the loader process: {type(err).__name__}: "
            f"{' '.join(str(err).split())}; make what cannot be sent inside the function"
        ) from err
