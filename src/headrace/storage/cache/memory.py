"""A cache in memory that all processes of a user on a machine share, and that ends with the last of them.

The memory begins with a table of slots; each slot has room for one block, but only what is written takes memory. A
reader looks a block up in the table, copies from the slot, and checks what it copied, without a lock: if the slot was
evicted meanwhile, header or checksums differ and the block is not there. Writers take turns. A slot's size is set
before its bytes are written and its key after, so a size without a key is what a dead writer left.

Reading goes through a mapping, which is three times as fast here as `pread` (2026, small pages of shared memory); the
memory is sealed, so it cannot be cut short under a reader. Writing does not: where there is no memory left, a write
says so, and a mapping is a SIGBUS.
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

LEAST_BYTES = 256 << 10
"""There are as many slots as blocks of this size fit: files smaller than that use up the slots before the bytes."""
SLOT_BYTES = stored_bytes(BLOCK_BYTES)
_U64 = np.dtype("<u8")
_NAME = "headrace-ram-1-{}"


class RamCache(Cache):
    """The cache in memory of one quota: processes that give another quota have another cache."""

    def __init__(self, max_bytes: int) -> None:
        """Raises StorageError if there can be no such memory here."""
        super().__init__("the cache in RAM")
        self._max = max_bytes
        num_slots = max_bytes // LEAST_BYTES
        self._base = rounded(_U64.itemsize * (1 + 4 * num_slots))
        num_bytes = self._base + num_slots * SLOT_BYTES
        try:
            self._fd = find_or_make(_NAME.format(max_bytes), num_bytes)
            self._map = mmap.mmap(self._fd, num_bytes)
        except OSError as err:
            raise StorageError(f"cannot use a cache in RAM: {err.strerror}; give a folder as cache, or none") from err
        self._bytes = np.frombuffer(self._map, np.uint8)
        table = self._bytes[: _U64.itemsize * (1 + 4 * num_slots)].view(_U64)
        self._top = table[:1]
        """How many slots were ever used: the others need no look."""
        self._key_high, self._key_low, self._sizes, self._used_ns = table[1:].reshape(4, num_slots)
        self._hints: dict[BlockKey, int] = {}
        """Where this process last saw a block."""

    def __del__(self) -> None:
        fd = self.__dict__.pop("_fd", -1)
        if fd >= 0:
            os.close(fd)  # the mapping goes with the last view of it

    def _open_locks(self) -> int:
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)

    def _read(self, key: BlockKey, start: int, view: memoryview) -> bool:
        slot = self._find(key)
        if slot is None or not read_block(_Slot(self._bytes, self._offset(slot)), key, start, view):
            return False
        self._used_ns[slot] = time.monotonic_ns()
        return True

    def _publish(self, key: BlockKey, data: memoryview) -> None:
        with self.locks() as lock:
            lock.take(LEDGER_LOCK)
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

    def _drop(self, key: BlockKey) -> None:
        with self.locks() as lock:
            lock.take(LEDGER_LOCK)
            self._free_key(key)

    def _room_for(self, num_bytes: int) -> int:
        """A free slot, after evicting the least recently used blocks if need be."""
        sizes = self._live(self._sizes)
        excess = int(sizes.sum()) + num_bytes - self._max
        if excess > 0 or (len(sizes) == len(self._sizes) and bool(sizes.all())):
            self._evict(max(excess, 0) + self._max // SLACK_SHARE)
        free = np.flatnonzero(sizes == 0)
        if not len(free):
            self._top[0] += 1
            return int(self._top[0]) - 1
        self._remove_bytes(int(free[0]))  # a reader who came too late may have touched some
        return int(free[0])

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
        self._remove_bytes(slot)
        self._sizes[slot] = 0

    def _remove_bytes(self, slot: int) -> None:
        self._map.madvise(mmap.MADV_REMOVE, self._offset(slot), SLOT_BYTES)

    def _find(self, key: BlockKey) -> int | None:
        low, high = _low(key), _high(key)
        hint = self._hints.get(key)
        if hint is not None and self._key_low[hint] == low and self._key_high[hint] == high:
            return hint
        for slot in np.flatnonzero(self._live(self._key_low) == low):
            if self._key_high[slot] == high:
                if len(self._hints) >= len(self._sizes):  # most are of blocks that were evicted
                    self._hints.clear()
                self._hints[key] = int(slot)
                return int(slot)
        self._hints.pop(key, None)
        return None

    def _live(self, column: NDArray[Any]) -> NDArray[Any]:
        return column[: int(self._top[0])]

    def _offset(self, slot: int) -> int:
        return self._base + slot * SLOT_BYTES


class _Slot:
    """A block in shared memory, which may be evicted at any moment."""

    def __init__(self, memory: NDArray[np.uint8], base: int) -> None:
        self._bytes = memory[base : base + SLOT_BYTES]

    def head(self, num_bytes: int) -> bytes:
        return self._bytes[:num_bytes].tobytes()

    def fill(self, at: int, before: int, view: memoryview, after: int) -> tuple[memoryview, memoryview]:
        end = at + len(view)
        np.copyto(np.frombuffer(view, np.uint8), self._bytes[at:end])  # lets go of the interpreter lock
        return self._bytes[at - before : at].data, self._bytes[end : end + after].data


def _high(key: BlockKey) -> int:
    """Half of what stands for a block in the table; never 0, which is nobody's."""
    return int.from_bytes(key.content[:8], "little") | 1


def _low(key: BlockKey) -> int:
    """The other half. The block's header says the whole."""
    return (int.from_bytes(key.content[8:], "little") + key.number) % 2**64
