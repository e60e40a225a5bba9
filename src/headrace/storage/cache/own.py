"""A cache's folder: this user's alone, marked, and removed by whoever wants to, whoever uses it.

All of a cache goes through a descriptor of its folder, so what is removed under a process that has it open is no error.
While a process opens it, it may be half gone: without its mark, or with files and folders vanishing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from headrace.errors import StorageError
from headrace.storage.place import quoted

TRIES = 20
"""So often a folder that is removed while it is opened is made anew."""

_TAG = "CACHEDIR.TAG"
_TAG_TEXT = b"""Signature: 8a477f597d28d172789f06886806bc55
# Kept by headrace (cache=..., cache_decoded=...). Everything here can be had again, and may be removed whole.
"""


def open_own_folder(path: str, is_own: Callable[[str], bool]) -> int:
    """A descriptor of a cache's folder, made if need be. `is_own` knows the names that a cache has in it.

    Raises OSError, FileNotFoundError where it is removed meanwhile, and StorageError if it is another user's or, with
    other names and without the mark, another program's.
    """
    with suppress(FileExistsError):  # exist_ok would look what it is, when it may be gone again
        Path(path).parent.mkdir(parents=True)
    with suppress(FileExistsError):
        Path(path).mkdir(0o700)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise StorageError(f"{quoted(path)} belongs to another user: give another folder as cache")
        names = os.listdir(fd)  # noqa: PTH208 - pathlib knows no descriptors
        if _TAG not in names:
            if not all(map(is_own, names)):  # a mark alone may be gone: the whole is being removed
                raise StorageError(
                    f"{quoted(path)} is not a cache of headrace: move it away, or give another folder as cache"
                )
            _mark(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def again_if_removed(open_it: Callable[[], None]) -> None:
    """Open a cache, anew where its folder is removed meanwhile. Raises FileNotFoundError after so many tries."""
    for _ in range(TRIES - 1):
        with suppress(FileNotFoundError):
            return open_it()
    return open_it()


def _mark(folder_fd: int) -> None:
    tag = os.open(_TAG, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
    try:
        os.write(tag, _TAG_TEXT)
    finally:
        os.close(tag)
