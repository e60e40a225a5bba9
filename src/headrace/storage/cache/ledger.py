"""What a cache folder holds, in bytes, and who has to go when it is too much.

The truth is the files. Counting them all at every block would be slow, so the count is kept in a small record, which is
marked open while files change. A process that dies in between leaves it open, and the next one counts the files again;
so does the first one after a restart of the machine, which may have lost what was written last.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from headrace.storage.cache.block import claim_of, parse_name, rounded
from headrace.storage.cache.locks import Locks

BLOCKS, PARTS = "blocks", "parts"
"""The folders of published blocks (in 256 more folders) and of those being written."""
STATE = "state"
LEDGER_LOCK = 0
SLACK_SHARE = 32
"""Eviction goes on until a 32nd of the quota is free, so that looking through all files is rare."""

_RECORD = struct.Struct("<8s16sQQ")
_MAGIC = b"hrcount1"
_FAN = re.compile(r"[0-9a-f]{2}")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Stored(NamedTuple):
    """A published block's file, so made that they sort by their last use."""

    used_ns: int
    path: str
    num_bytes: int


class Ledger:
    """The count of one cache folder. Thread-safe; shared with other processes through the folder."""

    def __init__(self, folder_fd: int, max_bytes: int) -> None:
        self._folder, self._max = folder_fd, max_bytes
        self._boot = bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))

    def open_state(self) -> int:
        """Open the file of the count, which all locks of the cache are of, for reading and writing."""
        return os.open(STATE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._folder)

    @contextmanager
    def opened(self) -> Iterator[Account]:
        """The count, for one process at a time, while it changes files. Raises OSError, TimeoutError too."""
        with Locks(self.open_state) as lock:
            lock.take(LEDGER_LOCK)
            used = self._read(lock.fd)
            if used is None:
                self.sweep()
                used = sum(block.num_bytes for block in stored_blocks(self._folder))
            self._write(lock.fd, used, is_open=True)
            account = Account(self._folder, used, self._max)
            yield account
            self._write(lock.fd, account.used_bytes, is_open=False)  # not after an exception: then it is counted anew

    def sweep(self) -> None:
        """Remove what dead processes were writing: parts whose claim can be had."""
        parts = _open_folder(PARTS, self._folder)
        try:
            for name in _names(parts):
                found = parse_name(name)
                with Locks(self.open_state) as claim:
                    if found and claim.try_take(claim_of(*found)):
                        with suppress(FileNotFoundError):
                            os.unlink(name, dir_fd=parts)
        finally:
            os.close(parts)

    def _read(self, fd: int) -> int | None:
        raw = os.pread(fd, _RECORD.size + 8, 0)
        if len(raw) != _RECORD.size + 8 or xxh3_64_intdigest(raw[:-8]) != int.from_bytes(raw[-8:], "little"):
            return None
        magic, boot, used, is_open = _RECORD.unpack_from(raw)
        return used if (magic, boot, is_open) == (_MAGIC, self._boot, 0) else None

    def _write(self, fd: int, used: int, *, is_open: bool) -> None:
        raw = _RECORD.pack(_MAGIC, self._boot, used, is_open)
        os.pwrite(fd, raw + xxh3_64_intdigest(raw).to_bytes(8, "little"), 0)


class Account:
    """The count while the ledger is open."""

    def __init__(self, folder_fd: int, used_bytes: int, max_bytes: int) -> None:
        self._folder, self._max = folder_fd, max_bytes
        self.used_bytes = used_bytes

    def make_room(self, num_bytes: int) -> None:
        """Evict the least recently used blocks, if there is no room for so many bytes more."""
        if self.used_bytes + num_bytes <= self._max:
            return
        blocks = sorted(stored_blocks(self._folder))
        self.used_bytes = sum(block.num_bytes for block in blocks)
        target = max(0, self._max - self._max // SLACK_SHARE - num_bytes)
        for block in blocks:
            if self.used_bytes <= target:
                break
            self.remove(block.path)

    def remove(self, path: str) -> None:
        """Remove a block's file; one that is not there is fine."""
        with suppress(FileNotFoundError):
            num_bytes = rounded(os.stat(path, dir_fd=self._folder, follow_symlinks=False).st_size)
            os.unlink(path, dir_fd=self._folder)
            self.used_bytes = max(0, self.used_bytes - num_bytes)


def block_path(name: str) -> str:
    """Where a block lies in its cache folder."""
    return f"{BLOCKS}/{name[:2]}/{name}"


def stored_blocks(folder_fd: int) -> Iterator[Stored]:
    """Every published block of a cache folder. What has not the name and kind of one is none of ours."""
    blocks = _open_folder(BLOCKS, folder_fd)
    try:
        for fan in filter(_FAN.fullmatch, _names(blocks)):
            with suppress(NotADirectoryError):
                yield from _blocks_in(fan, blocks)
    finally:
        os.close(blocks)


def _blocks_in(fan: str, blocks_fd: int) -> Iterator[Stored]:
    fd = _open_folder(fan, blocks_fd)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                if not parse_name(entry.name) or not entry.name.startswith(fan):
                    continue
                with suppress(FileNotFoundError):  # evicted by hand meanwhile
                    if entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        yield Stored(status.st_mtime_ns, block_path(entry.name), rounded(status.st_size))
    finally:
        os.close(fd)


def _names(folder_fd: int) -> list[str]:
    return os.listdir(folder_fd)


def _open_folder(name: str, above_fd: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above_fd)
