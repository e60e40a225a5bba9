"""Decoded samples in a folder: one large file for each dataset and its first steps, kept from run to run.

    DIR/headrace-decoded-UID/          of this user alone; nothing outside it is ever touched
      CACHEDIR.TAG                     says so, to backup programs too
      3f...c2.decoded                  a store

Samples are read with `pread`, and each is checked by its checksum: a file may be cut short or changed by others, and a
crash of the machine may lose what was written last. The quota counts all stores of the folder. One that no process has
open makes room where it is needed, the one that was not opened for the longest time first.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from headrace.formats import sample_checksum
from headrace.load.decoded.store import HEADER_BYTES, Store
from headrace.storage import storage_refusals
from headrace.storage.cache.folder import check_spare
from headrace.storage.cache.locks import Locks
from headrace.storage.cache.own import again_if_removed, open_own_folder

_SUFFIX = ".decoded"
_MAGIC = b"hrdecod1"
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_INITIALIZE = 0


class FolderStore(Store):
    """The store in a folder for one dataset and its first steps."""

    def __init__(self, folder: str, name: str, num_samples: int, max_bytes: int) -> None:
        """Raises StorageError if the folder cannot be made or used, or is another user's or another program's."""
        path = os.path.join(folder, f"headrace-decoded-{os.geteuid()}")
        super().__init__(f"the cache {folder}", num_samples, max_bytes)
        self._folder_fd = -1
        with storage_refusals("keep decoded samples in", path):
            again_if_removed(lambda: self._open_in(path, name + _SUFFIX))
            self._initialize(_MAGIC + bytes.fromhex(name) + num_samples.to_bytes(8, "little"))

    def __del__(self) -> None:
        super().__del__()
        self._close_folder()

    def _close_folder(self) -> None:
        fd, self._folder_fd = self.__dict__.get("_folder_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def _open_in(self, path: str, name: str) -> None:
        self._close_folder()
        self._folder_fd = open_own_folder(path, lambda found: found.endswith(_SUFFIX))
        self._fd = self._open(name)

    def _open(self, name: str) -> int:
        """The store's file, with the lock that says it is in use."""
        while True:
            fd = os.open(name, _OPEN, 0o600, dir_fd=self._folder_fd)
            fcntl.flock(fd, fcntl.LOCK_SH)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=self._folder_fd)):
                    os.utime(fd)
                    return fd
            os.close(fd)  # it made room meanwhile

    def _initialize(self, header: bytes) -> None:
        """Begin the file, unless that is done: header and then size, so that a file with both is whole."""
        with Locks(self._open_locks) as lock:
            lock.take(_INITIALIZE)
            if os.fstat(self._fd).st_size >= self._base and os.pread(self._fd, len(header), 0) == header:
                return
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, header.ljust(HEADER_BYTES, b"\0"), 0)
            os.ftruncate(self._fd, self._base)

    def _extend(self, num_bytes: int) -> int | None:
        while self._stored_bytes() + num_bytes > self._max_bytes:
            if not self._remove_unused():
                return None
        check_spare(self._folder_fd, num_bytes)
        end = max(self._base, os.fstat(self._fd).st_size)
        os.ftruncate(self._fd, end + num_bytes)
        return end

    def _read(self, offset: int, length: int, checksum: int) -> memoryview | None:
        data = np.empty(length, np.uint8).data
        done = 0
        while done < length:
            try:
                read = os.preadv(self._fd, [data[done:]], offset + done)
            except OSError as err:
                self._fail(err)
                return None
            if not read:
                return None
            done += read
        return data if sample_checksum(data) == checksum else None

    def _stored_bytes(self) -> int:
        return sum(status.st_size for _, status in self._stores())

    def _remove_unused(self) -> bool:
        """Remove the store that was not opened for the longest time and that nobody has open; False if none is so."""
        for name, _ in sorted(self._stores(), key=lambda store: store[1].st_mtime_ns):
            with suppress(FileNotFoundError):
                fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder_fd)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=self._folder_fd)):
                        continue  # another process has removed it, and a third made it anew
                    os.unlink(name, dir_fd=self._folder_fd)
                    return True
                except BlockingIOError:
                    continue
                finally:
                    os.close(fd)
        return False

    def _stores(self) -> Iterator[tuple[str, os.stat_result]]:
        for name in os.listdir(self._folder_fd):  # noqa: PTH208 - pathlib knows no descriptors
            if name.endswith(_SUFFIX):
                with suppress(FileNotFoundError):
                    yield name, os.stat(name, dir_fd=self._folder_fd, follow_symlinks=False)
