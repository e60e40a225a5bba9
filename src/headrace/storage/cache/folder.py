"""A cache in a folder: one file a block, shared by all processes of a machine and kept from run to run.

    DIR/headrace-cache-UID/            of this user alone; nothing outside it is ever touched
      CACHEDIR.TAG                     says so, to backup programs too
      state                            the locks and the count of bytes (see `ledger`)
      blocks/3f/3f...-12               block 12 of some content; its time of change is that of its last use
      parts/3f...-12                   the same while it is written

A reader opens the file, checks what it reads and closes it: no lock. A writer holds the block's claim, writes the part,
and renames it while the ledger is open. So at every instant each file is whole or a part, and a part whose claim can be
had is a dead writer's.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress

from headrace.storage.cache.block import BlockFile, BlockKey, read_block, stored_bytes, write_block
from headrace.storage.cache.cache import Cache
from headrace.storage.cache.ledger import BLOCKS, LEDGER_LOCK, PARTS, STATE, Ledger, block_path
from headrace.storage.cache.own import again_if_removed, open_own_folder
from headrace.storage.refusal import storage_refusals

TOUCH_SEC = 10.0
"""A block's time of last use is this exact: a hit that follows another sooner writes nothing."""
SPARE_BYTES, SPARE_SHARE = 1 << 30, 64
"""The disk keeps a GiB free, a 64th if it is small: checkpoints and others need room too."""

_NOT_A_BLOCK = (errno.ENOENT, errno.ELOOP)
_WRITE_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe would wait for a writer


class FolderCache(Cache):
    """The cache in one folder, within this process's quota."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        """Raises StorageError if the folder cannot be made, or is another user's or another program's."""
        path = os.path.join(folder, f"headrace-cache-{os.geteuid()}")
        super().__init__(f"the cache {folder}")
        with storage_refusals("use the cache", path):
            again_if_removed(lambda: self._open(path, max_bytes))

    def __del__(self) -> None:
        fd = self.__dict__.pop("_fd", -1)
        if fd >= 0:
            os.close(fd)

    def _open(self, path: str, max_bytes: int) -> None:
        self.__del__()
        self._fd = open_own_folder(path, {BLOCKS, PARTS, STATE}.__contains__)
        for name in (BLOCKS, PARTS):
            _make_folder(name, self._fd)
        self._ledger = Ledger(self._fd, max_bytes)
        self._ledger.sweep()
        with self.locks() as locks:  # a file system without locks is refused now, not in the middle of an epoch
            locks.try_take(LEDGER_LOCK)

    def _open_locks(self) -> int:
        return self._ledger.open_state()

    def _read(self, key: BlockKey, start: int, view: memoryview) -> bool:
        try:
            fd = os.open(block_path(key.name), _READ, dir_fd=self._fd)
        except OSError as err:
            if err.errno in _NOT_A_BLOCK:
                return False
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or not read_block(BlockFile(fd), key, start, view):
                return False
            if abs(time.time() - status.st_mtime) > TOUCH_SEC:
                os.utime(fd)
            return True
        finally:
            os.close(fd)

    def _publish(self, key: BlockKey, data: memoryview) -> None:
        num_bytes = stored_bytes(len(data))
        check_spare(self._fd, num_bytes)
        part, path = f"{PARTS}/{key.name}", block_path(key.name)
        try:
            self._write(part, key, data)
            with self._ledger.opened() as account:
                account.remove(path)  # an unsound one, if any: a sound one would have been read
                account.make_room(num_bytes)
                self._rename(part, path)
                account.used_bytes += num_bytes
        except BaseException:
            with suppress(OSError):
                os.unlink(part, dir_fd=self._fd)
            raise

    def _drop(self, key: BlockKey) -> None:
        with self._ledger.opened() as account:
            account.remove(block_path(key.name))

    def _write(self, part: str, key: BlockKey, data: memoryview) -> None:
        fd = os.open(part, _WRITE_NEW, 0o600, dir_fd=self._fd)
        try:
            write_block(fd, 0, key, data)
        finally:
            os.close(fd)

    def _rename(self, part: str, path: str) -> None:
        try:
            os.rename(part, path, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except FileNotFoundError:
            _make_folder(os.path.dirname(path), self._fd)
            os.rename(part, path, src_dir_fd=self._fd, dst_dir_fd=self._fd)


def check_spare(folder_fd: int, num_bytes: int) -> None:
    """Raises OSError where a cache that takes so much more would leave its disk as good as full."""
    disk = os.fstatvfs(folder_fd)
    spare = min(SPARE_BYTES, disk.f_blocks * disk.f_frsize // SPARE_SHARE)
    if disk.f_bavail * disk.f_frsize < num_bytes + spare:
        raise OSError(errno.ENOSPC, "its disk is as good as full")


def _make_folder(name: str, above_fd: int) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above_fd)
