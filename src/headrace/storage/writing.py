"""Writing so that a reader sees a whole file or none.

A file is written under another name, flushed to the disk, and renamed. What a crash leaves is the other name, which no
reader looks at. Every refusal of the disk becomes a StorageError.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from headrace.storage.refusal import storage_refusals

TEMPORARY_SUFFIX = ".tmp"

_MOST_PARTS = 1024  # of one call: IOV_MAX of Linux and macOS


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and outlasting a power cut."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with storage_refusals("write", path):
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            replace_file(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of `data` at the file's position; the operating system may take several calls for it."""
    view = memoryview(data)
    while len(view):
        view = view[os.write(fd, view) :]


def write_parts(fd: int, parts: Sequence[bytes | memoryview]) -> None:
    """Write all of them, one behind the other, in as few calls as it takes."""
    for at in range(0, len(parts), _MOST_PARTS):
        some = parts[at : at + _MOST_PARTS]
        written = os.writev(fd, some)
        if written < sum(map(len, some)):
            write_all(fd, b"".join(some)[written:])


def replace_file(temporary: Path, path: Path) -> None:
    """Give a finished file its name, and make the name last."""
    with storage_refusals("write", path):
        temporary.replace(path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; one that is there already is left as it is."""
    with storage_refusals("make the folder", path):
        path.mkdir(parents=True, exist_ok=True)


def remove_file(path: Path) -> None:
    """Remove a file; one that is not there is fine."""
    with storage_refusals("remove", path):
        path.unlink(missing_ok=True)
