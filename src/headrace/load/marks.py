"""Marks: what each thread of a process is at, in shared memory that outlives the process.

The process that starts another makes the page, and looks at it while it waits: where nothing changes, nothing goes on;
and where the process ends, the page says which samples it was at. A mark costs three stores, no lock and no system
call. The first lane is no thread's: in it the process says that it runs. Behind the marks, in the same file, the other
process leaves the stacks of its threads when it crashes, or when it is asked for them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import time
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple, TypeAlias

Where: TypeAlias = tuple[int, int]
"""A sample: (epoch, position); (PROBED, its number) where it is tried for its shapes."""
PROBED = -1
STACKS_SIGNAL = signal.SIGUSR1

_WORDS = 4  # of a lane: what, epoch, position, beats
_WORD_BYTES = 8
_LOOK_SEC = 0.05


class Doing(IntEnum):
    """What a thread is at."""

    NOTHING = 0
    SAMPLE = 1
    """Transforming the sample of (epoch, position)."""
    COLLATE = 2
    """In the user's `collate`, for the batch of (epoch, step)."""
    STORE = 3
    """Waiting for a store, within the store's own deadline."""
    READ = 4
    """Reading samples of the batch that begins at (epoch, position), from the local disk."""


class Mark(NamedTuple):
    """One thread's mark."""

    doing: Doing
    epoch: int
    position: int

    def __str__(self) -> str:
        if self.doing is Doing.COLLATE:
            return f"collate for step {self.position} of epoch {self.epoch}"
        if self.doing is Doing.STORE:
            return "reading from a store"
        if self.doing is Doing.READ:
            return f"reading samples for position {self.position} of epoch {self.epoch} and those after it"
        return f"sample {self.position}" if self.epoch == PROBED else f"position {self.position} of epoch {self.epoch}"


class Lane:
    """Where one thread writes its marks."""

    __slots__ = ("words",)

    def __init__(self, words: memoryview) -> None:
        self.words = words

    @classmethod
    def unseen(cls) -> Lane:
        """A lane that nobody looks at."""
        return cls(memoryview(bytearray(_WORDS * _WORD_BYTES)).cast("q"))

    def mark(self, epoch: int, position: int, doing: Doing = Doing.SAMPLE) -> None:
        """The thread is at this from now on."""
        words = self.words
        words[1] = epoch
        words[2] = position
        words[0] = doing

    def clear(self) -> None:
        """The thread has done what it was at, which is progress."""
        self.words[0] = 0
        self.words[3] += 1

    @contextlib.contextmanager
    def reading(self, is_remote: bool) -> Iterator[None]:
        """While the thread reads; a store's delays are bounded by the deadline for reads, and so are no hang."""
        if is_remote:
            self.words[0] = Doing.STORE
        try:
            yield
        finally:
            self.clear()


class Marks:
    """The page of one process, as that process or the one that started it sees it."""

    def __init__(self, fd: int) -> None:
        """Over the descriptor that `create` made."""
        self.fd = fd
        self._map = mmap.mmap(fd, 0)
        self._all = memoryview(self._map)
        self._words = words = self._all.cast("q")
        lanes = [Lane(words[at : at + _WORDS]) for at in range(0, len(words), _WORDS)]
        self._alive, self.lanes = lanes[0], lanes[1:]
        self._num_bytes = len(self._map)

    @classmethod
    def create(cls, num_lanes: int) -> Marks:
        """An empty page for so many threads at least; anonymous memory, which is gone with the last who holds it."""
        fd = os.memfd_create("headrace-marks", os.MFD_CLOEXEC)
        os.ftruncate(fd, -(-(1 + num_lanes) * _WORDS * _WORD_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE)
        return cls(fd)

    def close(self) -> None:
        """Let go of the page and its descriptors."""
        for view in (*(lane.words for lane in (self._alive, *self.lanes)), self._words, self._all):
            view.release()
        self._map.close()
        os.close(self.fd)

    def snapshot(self) -> bytes:
        """All threads' marks: the same bytes later say that nothing went on. Empty while nothing was ever marked."""
        found = self._words[_WORDS:].tobytes()
        return found if any(found) else b""

    def beat(self) -> None:
        """The process runs: it is neither stopped, nor is the interpreter's lock held for ever."""
        self._alive.clear()

    @property
    def beats(self) -> int:
        """How often the process has said that it runs."""
        return self._words[3]

    def marks(self) -> list[Mark]:
        """What the threads are at that are at something."""
        words = self._words.tolist()
        found = (words[at : at + _WORDS] for at in range(_WORDS, len(words), _WORDS))
        return [Mark(Doing(what), epoch, position) for what, epoch, position, _ in found if what]

    def catch_stacks(self) -> None:
        """Have this process leave its stacks here when it crashes, or gets STACKS_SIGNAL, whatever holds the lock."""
        os.lseek(self.fd, 0, os.SEEK_END)
        faulthandler.enable(self.fd, all_threads=True)
        faulthandler.register(STACKS_SIGNAL, self.fd, all_threads=True)

    def stacks(self) -> str:
        """What the process left of its stacks; empty where it left none."""
        size = os.fstat(self.fd).st_size - self._num_bytes
        return os.pread(self.fd, size, self._num_bytes).decode("utf-8", "replace").strip()

    def wait_for_stacks(self, limit_sec: float) -> None:
        """Wait until a process that was asked for its stacks has left them; no longer than the limit."""
        before, size, deadline = self._num_bytes, os.fstat(self.fd).st_size, time.monotonic() + limit_sec
        while (size == self._num_bytes or size != before) and time.monotonic() < deadline:
            time.sleep(_LOOK_SEC)
            before, size = size, os.fstat(self.fd).st_size
