"""What the operating system refused, in one line that says what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import StorageError
from headrace.storage.place import quoted

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def storage_refusals(action: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError inside the block into a StorageError that begins `cannot {action} {path}`."""
    try:
        yield
    except OSError as err:
        raise StorageError(f"cannot {action} {quoted(path)}: {_reason(err, Path(path))}") from err


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
