"""Shared memory without a name, found by the processes of one user on one machine.

A name in `/dev/shm` outlives a kill -9 of its last user, and a container gives it 64 MB. An anonymous memory file
(memfd) ends with the last process that holds it, whatever ends that one. It can be found all the same: every process's
open files are listed under `/proc`, to processes of the same user only, and opening an entry opens the same memory.
Whoever finds none makes one; a socket in the abstract name space, which ends with its process too, makes sure that two
who start at once do not both. Processes that cannot see each other (other containers, other users) each have their own.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headrace.storage.cache.locks import Sleeps

PATIENCE_SEC = 10.0
"""How long another process may take to make the memory before this one makes some of its own."""
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def find_or_make(name: str, num_bytes: int) -> int:
    """A descriptor of the memory of that name and size; pages that were never written take no room and are zero."""
    with _alone(name):
        fd = _find(name, num_bytes)
        return _make(name, num_bytes) if fd is None else fd


def _make(name: str, num_bytes: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)  # a mapping of it can never end in a SIGBUS
    except BaseException:
        os.close(fd)
        raise
    return fd


def _find(name: str, num_bytes: int) -> int | None:
    link = Path(f"/memfd:{name} (deleted)")
    for process in Path("/proc").glob("[0-9]*"):
        for file in _files_of(process):
            with suppress(OSError):  # closed meanwhile
                if file.readlink() == link and (fd := _open_checked(file, num_bytes)) is not None:
                    return fd
    return None


def _files_of(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir()) if process.stat().st_uid == os.geteuid() else []
    except OSError:  # it ended, or keeps its files to itself
        return []


def _open_checked(path: Path, num_bytes: int) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    status = os.fstat(fd)
    # Sealed: else whoever made it had not finished, and is dead.
    if (status.st_uid, status.st_size) == (os.geteuid(), num_bytes) and fcntl.fcntl(fd, fcntl.F_GET_SEALS) == _SEALS:
        return fd
    os.close(fd)
    return None


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Among the processes of one user, be the only one in this block."""
    sleeps = Sleeps(PATIENCE_SEC)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mutex:
        while True:
            try:
                mutex.bind(f"\0{name}-{os.geteuid()}")
                break
            except OSError:
                if not sleeps.sleep():
                    break
        yield
