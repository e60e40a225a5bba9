"""Decoded samples in memory that all processes of a user on a machine share, and that ends with the last of them.

The memory has no name: processes find it through `/proc` (see `storage.cache.arena`). Reading goes through a mapping
that cannot be written, so a sample's arrays are views of it: what a step does not look at is never copied. Writing does
not: where there is no memory left a write says so, and a mapping is a SIGBUS.
"""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np

from headrace.errors import StorageError
from headrace.load.decoded.store import Store, base_bytes
from headrace.load.host import available_memory_bytes
from headrace.storage.cache.arena import find_or_make
from headrace.storage.cache.options import memory_bytes

SPARE_BYTES, SPARE_SHARE = 1 << 30, 16
"""The machine keeps a GiB of free memory, a 16th of a small one's."""
_NAME = "headrace-decoded-1-{}"
_U64 = np.dtype("<u8")


def hold_memory(name: str, num_samples: int) -> int:
    """A descriptor of the memory of a store: as long as it is open the store lives, whichever processes end.

    Raises StorageError if there can be no such memory here.
    """
    try:
        # Pages that were never written take no room: all of the machine's memory is more than any quota.
        return find_or_make(_NAME.format(name), base_bytes(num_samples) + memory_bytes())
    except OSError as err:
        raise StorageError(
            f"cannot keep decoded samples in RAM: {err.strerror}; give a folder as cache_decoded"
        ) from err


class RamStore(Store):
    """The store in memory for one dataset and its first steps."""

    def __init__(self, name: str, num_samples: int, max_bytes: int, *, is_modest: bool) -> None:
        """A modest one takes half of the memory that is free now, at most. Raises StorageError."""
        super().__init__("the cache in RAM", num_samples, max_bytes)
        self._fd = hold_memory(name, num_samples)
        spare = min(SPARE_BYTES, memory_bytes() // SPARE_SHARE)
        self._spare = max(spare, available_memory_bytes() // 2) if is_modest else spare
        try:
            self._map = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        except OSError as err:
            raise StorageError(f"cannot keep decoded samples in RAM: {err.strerror}") from err
        self._view = memoryview(self._map)

    @property
    def used_bytes(self) -> int:
        """What it holds, the table included."""
        return max(self._base, int.from_bytes(os.pread(self._fd, _U64.itemsize, 0), "little"))

    def _extend(self, num_bytes: int) -> int | None:
        end = self.used_bytes
        if end + num_bytes > min(self._max_bytes, len(self._view)):
            return None
        if available_memory_bytes() < num_bytes + self._spare:
            raise OSError(errno.ENOMEM, "memory is as good as full")
        os.pwrite(self._fd, (end + num_bytes).to_bytes(_U64.itemsize, "little"), 0)
        return end

    def _read(self, offset: int, length: int, checksum: int) -> memoryview | None:
        return self._view[offset : offset + length]  # nobody but us writes there, and only what has no record yet
