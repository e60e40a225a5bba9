"""Folders for files that must have a name for a while. A killed process leaves its own; the next pack removes it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from headrace.storage import storage_refusals

_PREFIX = ".headrace-pack-"


class ScratchFolder:
    """A new folder, which this process holds locked until `close` removes it."""

    def __init__(self, parent: Path) -> None:
        """Makes it in `parent`, and removes what killed processes of the same user have left there.

        Raises StorageError if the disk is full.
        """
        with storage_refusals("write a temporary folder in", parent):
            for path in parent.glob(_PREFIX + "*"):
                _remove_if_left(path)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove the folder and what is in it."""
        if self._fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._fd)
            self._fd = -1


def _remove_if_left(path: Path) -> None:
    with suppress(OSError):  # another user's, or removed by another pack at this moment
        if path.stat().st_uid != os.getuid() or path.is_symlink():
            return
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
