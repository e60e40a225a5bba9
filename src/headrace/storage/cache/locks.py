"""Locks between processes that the kernel lets go of when their holder dies.

Each lock is one byte of one file ("open file description" locks of Linux): nothing is written, nothing needs cleaning
up after a kill -9, and threads exclude each other as processes do, because every holder has a descriptor of its own.
Waiting is done in small sleeps rather than in the kernel, so that a holder who is stopped in a debugger stops nobody
for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

PATIENCE_SEC = 30.0
"""How long a lock that is held for moments only is waited for."""
FIRST_SLEEP_SEC, LONGEST_SLEEP_SEC = 0.001, 0.02

_FLOCK = struct.Struct("hhqqi4x")
_ALL = 0
"""A range of this length goes on for ever."""
_open_fds: set[int] = set()


class Locks:
    """Some locks of one file, held by one thread in a `with` block, and let go at its end."""

    def __init__(self, open_file: Callable[[], int]) -> None:
        """`open_file` opens the file anew, for reading and writing; it is called for the first lock."""
        self._open_file = open_file
        self.fd = -1
        """The file of locks, once one is held."""

    def try_take(self, number: int) -> bool:
        """Take a lock, unless somebody else holds it. Raises OSError where the file system has no locks."""
        if self.fd < 0:
            self.fd = self._open_file()
            _open_fds.add(self.fd)
        try:
            self._set(fcntl.F_WRLCK, number, 1)
        except OSError as err:
            if err.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def take(self, number: int) -> None:
        """Take a lock, once it is free. Raises TimeoutError, an OSError, if it is not for half a minute."""
        sleeps = Sleeps(PATIENCE_SEC)
        while not self.try_take(number):
            if not sleeps.sleep():
                raise TimeoutError(errno.ETIMEDOUT, f"another process has held a lock for {PATIENCE_SEC:.0f} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.fd in _open_fds:
            with suppress(OSError):  # closing does it too, unless a forked child has a copy
                self._set(fcntl.F_UNLCK, 0, _ALL)
            _open_fds.discard(self.fd)
            os.close(self.fd)
            self.fd = -1

    def _set(self, kind: int, number: int, length: int) -> None:
        fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, number, length, 0))


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
    while _open_fds:
        os.close(_open_fds.pop())


os.register_at_fork(after_in_child=_let_go_in_child)
