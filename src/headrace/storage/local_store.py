"""Files and folders of the local disk, with the same verbs as the stores.

Writing makes the folders above: stores have none to make, and code that writes to a place should not care.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from headrace.storage.refusal import storage_refusals
from headrace.storage.store import Data, Entry
from headrace.storage.writing import TEMPORARY_SUFFIX, make_folder, replace_file, sync_folder, write_all

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def write(path: Path, data: Data) -> None:
    """Write a file whole or not at all; several writers of one name do not mix."""
    make_folder(path.parent)
    temporary = _temporary(path)
    with storage_refusals("write", path):
        try:
            _write_new(temporary, data)
            replace_file(temporary, path)
        except BaseException:
            _discard(temporary)
            raise


def put_if_absent(path: Path, data: Data) -> bool:
    """Write a file whole, unless the name is taken: then False."""
    make_folder(path.parent)
    temporary = _temporary(path)
    with storage_refusals("write", path):
        try:
            _write_new(temporary, data)
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as err:
            if err.errno not in _NO_LINKS:
                raise
            return _create(path, data)
        finally:
            _discard(temporary)
        sync_folder(path.parent)
    return True


def replace_if(path: Path, data: Data, expected: bytes) -> bool:
    """Write over a file that holds these bytes, else False. Exact among those who write by this function."""
    with storage_refusals("write", path):
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            return False
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_same = _is_at(file.fileno(), path) and file.read() == expected
            if is_same:
                write(path, data)
    return is_same


def move_in(source: Path, path: Path) -> None:
    """Give a finished file its place: renamed where both lie on one disk, else copied and removed."""
    make_folder(path.parent)
    with storage_refusals("write", path):
        try:
            source.replace(path)
        except OSError as err:
            if err.errno != errno.EXDEV:
                raise
            _copy(source, path)
            source.unlink()
        sync_folder(path.parent)


def entries(path: Path) -> list[Entry]:
    """What lies directly in the folder, by name; nothing where there is no folder."""
    with storage_refusals("list", path):
        try:
            with os.scandir(path) as found:
                return sorted(entry for entry in map(_entry, found) if entry)
        except (FileNotFoundError, NotADirectoryError):
            return []


def walk(path: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Entry]:
    """Every file below the folder, by its path below it, folder by folder; a link to a folder above is not followed."""
    for entry in entries(path):
        if not entry.is_folder:
            yield entry
            continue
        with storage_refusals("list", path):
            found = (path / entry.name).stat()
        identity = (found.st_dev, found.st_ino)
        if identity not in above:
            for below in walk(path / entry.name, above | {identity}):
                yield below._replace(name=f"{entry.name}/{below.name}")


def exists(path: Path) -> bool:
    """Whether a file or folder is there."""
    with storage_refusals("read", path):
        return path.exists()


def is_folder(path: Path) -> bool:
    """Whether a folder is there."""
    with storage_refusals("read", path):
        return path.is_dir()


def _is_at(fd: int, path: Path) -> bool:
    """Whether the open file still has this name: another may have got it while we waited for the lock."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _entry(found: os.DirEntry[str]) -> Entry | None:
    if found.is_dir():
        return Entry(found.name, 0, True)
    try:
        return Entry(found.name, found.stat().st_size, False)
    except FileNotFoundError:  # removed meanwhile, or a link to nothing
        return None


def _temporary(path: Path) -> Path:
    # A random part, since two processes may write one name at once.
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _write_new(path: Path, data: Data) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def _create(path: Path, data: Data) -> bool:
    # A file system without hard links: only one creates the name, but a crash may leave it without its content.
    try:
        _write_new(path, data)
    except FileExistsError:
        return False
    sync_folder(path.parent)
    return True


def _copy(source: Path, path: Path) -> None:
    temporary = _temporary(path)
    try:
        shutil.copyfile(source, temporary)
        with temporary.open("rb") as copied:
            os.fsync(copied.fileno())
        temporary.replace(path)
    except BaseException:
        _discard(temporary)
        raise


def _discard(temporary: Path) -> None:
    with suppress(OSError):
        temporary.unlink(missing_ok=True)
