"""What the operating system refused, in one line that says what to do."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import TracebackType

from headrace.errors import StorageError
from headrace.storage.place import quoted

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


class storage_refusals:  # noqa: N801 - it reads as contextlib.suppress does, and costs less than a generator at every read
    """Turn an OSError inside the block into a StorageError that begins `cannot {action} {path}`."""

    __slots__ = ("_action", "_path")

    def __init__(self, action: str, path: str | os.PathLike[str]) -> None:
        self._action, self._path = action, path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(err, OSError):
            reason = _reason(err, Path(self._path))
            raise StorageError(f"cannot {self._action} {quoted(self._path)}: {reason}") from err


def _reason(err: OSError, path: Path) -> str:
    words = err.strerror or str(err)
    if err.errno in _FULL:
        return f"{words} ({_free_bytes(path)} bytes free); make room and run the same again"
    if err.errno in _NOT_ALLOWED:
        return f"{words}; change its permissions, or choose another place"
    return words


def _free_bytes(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    return f"{shutil.disk_usage(path).free:,}"
