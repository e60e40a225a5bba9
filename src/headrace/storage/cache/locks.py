"""Locks between processes that the kernel lets go of when their holder dies.

Each lock is one byte of one file ("open file description" locks of Linux): nothing is written, nothing needs cleaning up
after a kill -9, and threads exclude each other as processes do, because every lock has a descriptor of its own. Waiting
is done in small sleeps rather than in the kernel, so that a holder who is stopped in a debugger stops nobody for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

PATIENCE_SEC = 30.0
"""How long a lock that is held for moments only is waited for."""
FIRST_SLEEP_SEC, LONGEST_SLEEP_SEC = 0.001, 0.02

_FLOCK = struct.Struct("hhqqi4x")
_held: set[int] = set()


class Lock:
    """A lock that is held until released. To be used in a `with` block."""

    def __init__(self, fd: int, byte: int) -> None:
        self.fd = fd
        """A descriptor of the file of locks, open for reading and writing."""
        self._byte = byte

    def release(self) -> None:
        """Let go; once more does nothing."""
        fd, self.fd = self.fd, -1
        if fd < 0 or fd not in _held:
            return
        _held.discard(fd)
        try:  # explicitly: a child forked meanwhile may have a copy of the descriptor
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, self._byte, 1, 0))
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Locks:
    """The locks of one file, by number. Thread-safe, and usable in a forked child."""

    def __init__(self, open_file: Callable[[], int]) -> None:
        """`open_file` opens the file anew, for reading and writing."""
        self._open_file = open_file

    def try_take(self, number: int) -> Lock | None:
        """The lock, or None if somebody holds it. Raises OSError where the file system has no locks."""
        fd = self._open_file()
        _held.add(fd)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))
        except BaseException as err:
            _held.discard(fd)
            os.close(fd)
            if isinstance(err, OSError) and err.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        return Lock(fd, number)

    def take(self, number: int) -> Lock:
        """The lock, once it is free. Raises TimeoutError, an OSError, if it is not for half a minute."""
        sleeps = Sleeps(PATIENCE_SEC)
        while (lock := self.try_take(number)) is None:
            if not sleeps.sleep():
                raise TimeoutError(errno.ETIMEDOUT, f"a lock has been held for {PATIENCE_SEC:.0f} s by another process")
        return lock


class Sleeps:
    """Waiting for a condition: short sleeps at first, longer ones later, until the patience is over."""

    def __init__(self, patience_sec: float) -> None:
        self._deadline = time.monotonic() + patience_sec
        self._next_sec = FIRST_SLEEP_SEC

    def sleep(self) -> bool:
        """Sleep a little; False, at once, if the patience is over."""
        if time.monotonic() >= self._deadline:
            return False
        time.sleep(self._next_sec)
        self._next_sec = min(2 * self._next_sec, LONGEST_SLEEP_SEC)
        return True


def _let_go_in_child() -> None:
    # A forked child has copies of the descriptors, but not the threads that use them; it would hold the locks for as
    # long as it lives if the parent were killed.
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)
