"""Slots: anonymous shared memory in which batches are made and handed over without a copy.

A slot is a memfd: it has no name to leak, is not limited by the size of /dev/shm, and is gone with the last process
that holds it. The loader process owns the slots and fills them; the trainer maps them, and gives a slot back when
the last view of its batch has died.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.load.channel import Frame, Kind, send_frame

Bytes = NDArray[np.uint8]

ALIGNMENT = 64
_PAGE = 2 << 20  # sizes are multiples of this, so that batches of nearly one size do not remap at every turn


def aligned(num_bytes: int) -> int:
    """The number of bytes rounded up to where the next array may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


class Slot:
    """One slot. `allocate` may be called from several threads, and of a shared one from several processes.

    How much of a shared slot is taken is written at its beginning, and changed under a lock on the file, which the
    kernel lets go with the process that held it.
    """

    def __init__(self, number: int, is_shared: bool = False, fd: int | None = None) -> None:
        """`fd` is that of a slot which another process made."""
        self.number = number
        self.fd = os.memfd_create(f"headrace-slot-{number}", os.MFD_CLOEXEC) if fd is None else fd
        self._is_shared = is_shared
        self._may_grow_elsewhere = is_shared or fd is not None
        self._lock = threading.Lock()
        # An opening of its own: by that the kernel tells processes apart. A lock of fcntl's would be gone with the
        # first map that is let go, since Python's maps hold descriptors of the same file.
        self._lock_fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC) if is_shared else -1
        self._used = 0
        self._view: Bytes = np.empty(0, np.uint8)
        if is_shared and fd is None:
            self._grow(ALIGNMENT)
            self.clear()

    @property
    def size(self) -> int:
        """Bytes that it has now."""
        return os.fstat(self.fd).st_size if self._may_grow_elsewhere else len(self._view)

    @property
    def used(self) -> int:
        """Bytes that are taken."""
        return int(self._cursor[0]) if self._is_shared else self._used

    def clear(self) -> None:
        """Forget what was allocated: a new batch begins."""
        if self._is_shared:
            self._cursor[0] = ALIGNMENT
        self._used = 0

    def allocate(self, num_bytes: int) -> tuple[int, Bytes]:
        """Take the next bytes: where they begin, and a view of them. Grows the slot; earlier views stay valid."""
        with self._lock:
            if not self._is_shared:
                offset = self._used
                self._used = self._reach(offset, num_bytes)
            else:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
                try:
                    offset = int(self._cursor[0])
                    self._cursor[0] = self._reach(offset, num_bytes)
                finally:
                    fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
            return offset, self._view[offset : offset + num_bytes]

    def view(self) -> Bytes:
        """All of it, as it is now."""
        if self._may_grow_elsewhere and self.size > len(self._view):
            self._map()
        return self._view

    def _reach(self, offset: int, num_bytes: int) -> int:
        """Have so many bytes there; returns where they end."""
        end = offset + aligned(num_bytes)
        if end > self.size:
            self._grow(end)
        if end > len(self._view):
            self._map()
        return end

    @property
    def _cursor(self) -> NDArray[np.int64]:
        return self.view()[: np.dtype(np.int64).itemsize].view(np.int64)

    def _grow(self, num_bytes: int) -> None:
        size = -(-max(num_bytes, self.size * 5 // 4) // _PAGE) * _PAGE
        # posix_fallocate, not ftruncate: memory that is not to be had is an error here, not a SIGBUS at first touch.
        os.posix_fallocate(self.fd, 0, size)
        self._map(size)

    def _map(self, size: int | None = None) -> None:
        self._view = np.frombuffer(mmap.mmap(self.fd, size or self.size), np.uint8)


class SlotPool:
    """The slots of a loader process, and which of them are free."""

    def __init__(self, num_slots: int, is_shared: bool = False) -> None:
        """`is_shared`: other processes allocate in them too."""
        self._slots = [Slot(number, is_shared) for number in range(num_slots)]
        self._free = list(self._slots)
        self._changed = threading.Condition()

    def acquire(self, give_up: Callable[[], bool]) -> Slot | None:
        """A free slot, waiting for one; None once `give_up` says so."""
        with self._changed:
            while not self._free:
                if give_up():
                    return None
                self._changed.wait()
            slot = self._free.pop()
        slot.clear()
        return slot

    def release(self, number: int) -> None:
        """Take a slot back."""
        with self._changed:
            self._free.append(self._slots[number])
            self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait ask again whether to give up."""
        with self._changed:
            self._changed.notify_all()


class MappedSlots:
    """The slots as the trainer sees them: maps each once, and knows which batches are still held."""

    def __init__(self, orders_fd: int, make_map: Callable[[int, int], mmap.mmap] = mmap.mmap) -> None:
        """`make_map(fd, size)` maps a slot; for a device, one that pins it."""
        self._orders_fd = orders_fd
        self._make_map = make_map
        self._pid = os.getpid()
        self._fds: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._held: dict[int, weakref.ref[Any]] = {}
        self._open = True

    def add(self, number: int, fd: int) -> None:
        """A slot seen for the first time, with its descriptor."""
        self._fds[number] = fd

    def lease(self, number: int, size: int) -> Any:
        """A buffer over the slot of `size` bytes; when it and all its views are gone the slot is given back."""
        mapped = self.view(number, size)
        buffer = (ctypes.c_ubyte * len(mapped)).from_buffer(mapped)
        self._held[number] = weakref.ref(buffer, lambda _: self._died(number))
        return buffer

    def view(self, number: int, size: int) -> mmap.mmap:
        """The slot's bytes, at least `size` of them, for as long as it is not given back."""
        mapped = self._maps.get(number)
        if mapped is None or len(mapped) < size:
            mapped = self._maps[number] = self._make_map(self._fds[number], size)
        return mapped

    def give_back(self, number: int) -> None:
        """Give back a slot whose batch nobody saw."""
        send_frame(self._orders_fd, Frame(Kind.RELEASE, number))

    @property
    def num_held(self) -> int:
        """How many batches in slots are still held."""
        return len(self._held)

    def close(self) -> None:
        """Let go of descriptors and maps; batches that are held stay valid."""
        self._open = False
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._maps.clear()

    def _died(self, number: int) -> None:
        self._held.pop(number, None)
        # After the end the descriptor of the orders may be another file's; and what a forked process lets go of, this
        # one may still hold.
        if self._open and os.getpid() == self._pid:
            self.give_back(number)
