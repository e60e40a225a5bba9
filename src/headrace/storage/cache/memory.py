"""A cache in memory that all processes of a user on a machine share, and that ends with the last of them.

The memory begins with a table of slots; each slot has room for one block, but only what is written takes memory. A
reader looks a block up in the table, reads the slot, and checks what it read, without a lock: if the slot was evicted
meanwhile, header or checksums differ and the block is not there. Writers take turns. A slot's size is set before its
bytes are written and its key after, so a size without a key is what a dead writer left.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import StorageError
from headrace.storage.cache.arena import find_or_make
from headrace.storage.cache.block import BLOCK_BYTES, BlockKey, read_block, rounded, stored_bytes, write_block
from headrace.storage.cache.cache import Cache
from headrace.storage.cache.ledger import LEDGER_LOCK, SLACK_SHARE
from headrace.storage.cache.locks import Locks

LEAST_BYTES = 64 << 10
"""There are as many slots as blocks of this size fit: files smaller than that use up slots before bytes."""
SLOT_BYTES = stored_bytes(BLOCK_BYTES)
_U64 = np.dtype("<u8")


class RamCache(Cache):
    """The cache in memory of one quota: processes that give another quota have another cache."""

    def __init__(self, max_bytes: int) -> None:
        """Raises StorageError if there can be no such memory here."""
        super().__init__("the cache in RAM", Locks(self._reopen))
        self._max = max_bytes
        num_slots = max_bytes // LEAST_BYTES
        self._base = rounded(_U64.itemsize * (1 + 4 * num_slots))
        try:
            self._fd = find_or_make(f"headrace-ram-1-{max_bytes}", self._base + num_slots * SLOT_BYTES)
            table = np.frombuffer(mmap.mmap(self._fd, self._base), _U64)
        except OSError as err:
            raise StorageError(f"cannot use a cache in RAM: {err.strerror}; give a folder as cache, or none") from err
        self._top = table[:1]
        """How many slots were ever used: the others need no look."""
        columns = table[1 : 1 + 4 * num_slots].reshape(4, num_slots)
        self._key_high, self._key_low, self._sizes, self._used_ns = columns
        self._slots: dict[BlockKey, int] = {}
        """Where this process last saw a block: a hint."""

    def __del__(self) -> None:
        fd = self.__dict__.pop("_fd", -1)
        if fd >= 0:
            os.close(fd)

    def _reopen(self) -> int:
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)

    def _read(self, key: BlockKey, start: int, view: memoryview) -> bool:
        hint = self._slots.get(key)
        if hint is not None and self._read_slot(hint, key, start, view):
            return True
        slot = self._find(key)
        if slot is None or not self._read_slot(slot, key, start, view):
            self._slots.pop(key, None)
            return False
        self._slots[key] = slot
        return True

    def _read_slot(self, slot: int, key: BlockKey, start: int, view: memoryview) -> bool:
        if not read_block(self._fd, self._offset(slot), key, start, view):
            return False
        self._used_ns[slot] = time.monotonic_ns()
        return True

    def _publish(self, key: BlockKey, data: memoryview) -> None:
        with self._locks.take(LEDGER_LOCK):
            self._free_dead()
            self._free_key(key)  # an unsound one, if any: a sound one would have been read
            slot = self._room_for(stored_bytes(len(data)))
            self._sizes[slot] = stored_bytes(len(data))
            try:
                write_block(self._fd, self._offset(slot), key, data)
            except BaseException:
                self._free(slot)
                raise
            self._used_ns[slot] = time.monotonic_ns()
            self._key_low[slot] = _low(key)
            self._key_high[slot] = _high(key)
        self._slots[key] = slot

    def _drop(self, key: BlockKey) -> None:
        with self._locks.take(LEDGER_LOCK):
            self._free_key(key)

    def _room_for(self, num_bytes: int) -> int:
        """A free slot, after evicting the least recently used blocks if need be."""
        sizes = self._live(self._sizes)
        excess = int(sizes.sum()) + num_bytes - self._max
        is_full = len(sizes) == len(self._sizes) and bool(sizes.all())
        if excess > 0 or is_full:
            self._evict(max(excess, 0) + self._max // SLACK_SHARE)
        free = np.flatnonzero(sizes == 0)
        if len(free):
            return int(free[0])
        self._top[0] += 1
        return int(self._top[0]) - 1

    def _evict(self, num_bytes: int) -> None:
        sizes, used_ns = self._live(self._sizes), self._live(self._used_ns)
        taken = np.flatnonzero(sizes)
        for slot in taken[np.argsort(used_ns[taken], kind="stable")]:
            num_bytes -= int(sizes[slot])
            self._free(int(slot))
            if num_bytes <= 0:
                break

    def _free_dead(self) -> None:
        for slot in np.flatnonzero((self._live(self._sizes) > 0) & (self._live(self._key_high) == 0)):
            self._free(int(slot))

    def _free_key(self, key: BlockKey) -> None:
        slot = self._find(key)
        if slot is not None:
            self._free(slot)

    def _free(self, slot: int) -> None:
        """Give a slot's memory back, then the slot."""
        self._key_high[slot] = 0
        with mmap.mmap(self._fd, SLOT_BYTES, offset=self._offset(slot)) as memory:
            memory.madvise(mmap.MADV_REMOVE)
        self._sizes[slot] = 0

    def _find(self, key: BlockKey) -> int | None:
        low, high = _low(key), _high(key)
        for slot in np.flatnonzero(self._live(self._key_low) == low):
            if self._key_high[slot] == high:
                return int(slot)
        return None

    def _live(self, column: NDArray[Any]) -> NDArray[Any]:
        return column[: int(self._top[0])]

    def _offset(self, slot: int) -> int:
        return self._base + slot * SLOT_BYTES


def _high(key: BlockKey) -> int:
    """Half of what stands for a block in the table; never 0, which is nobody's."""
    return int.from_bytes(key.content[:8], "little") | 1


def _low(key: BlockKey) -> int:
    """The other half. The block's header says the whole."""
    return (int.from_bytes(key.content[8:], "little") + key.number) % 2**64
