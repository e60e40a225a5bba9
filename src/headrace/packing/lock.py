"""A lock that the operating system drops with the process that holds it, however that ends: a locked file."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from headrace.errors import TargetError
from headrace.storage import quoted, storage_refusals


def lock(path: Path) -> int:
    """An open, locked file; made if it is not there. Raises TargetError if another process holds the lock.

    The pack that held the lock may just have removed the file: then another one is made.
    """
    with storage_refusals("write", path):
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                _take(fd, path)
                if _is_at(fd, path):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def check_free(path: Path) -> None:
    """Raise TargetError if another process holds the lock."""
    with storage_refusals("write", path), suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _take(fd, path)
        finally:
            os.close(fd)


def _take(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        raise TargetError(
            f"another pack is writing into {quoted(path.parent)}: wait for it to end, or choose another target"
        ) from err


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
