"""What every cache of blocks can do, and what happens when it cannot go on: reading does.

Nothing that goes wrong in a cache is an error of the reader's: a full disk, a folder that was removed, a lock that is
not let go. The cache then rests for a minute, with one warning for the life of the process, and everything it does not
hold comes from the store.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from abc import ABC, abstractmethod

from headrace.storage.cache.block import BlockKey
from headrace.storage.cache.locks import Locks
from headrace.storage.place import quoted

REST_SEC = 60.0
"""How long nothing is put into a cache after it failed."""

SETTLE_SEC = 2.0
"""How long the end of a process waits for a block that is being written."""

_publishing = threading.Lock()
_log = logging.getLogger("headrace.storage")
_warned: set[tuple[int, str]] = set()


class Cache(ABC):
    """Blocks of files, shared by processes. Thread-safe; not to be pickled (its options are)."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._rests_until = float("-inf")

    @property
    def is_resting(self) -> bool:
        """Whether it takes nothing for now; what it holds can be read all the same."""
        return time.monotonic() < self._rests_until

    def read(self, key: BlockKey, start: int, view: memoryview) -> bool:
        """Fill `view` with the block's bytes from `start` on; False if the cache has no sound block of that key."""
        try:
            return self._read(key, start, view)
        except OSError as err:
            self._rest(err)
            return False

    def locks(self) -> Locks:
        """For one thread, the means to hold locks of this cache."""
        return Locks(self._open_locks)

    def claim(self, key: BlockKey, claims: Locks) -> bool:
        """Take the right to download a block; False while somebody has it, or if the cache now rests."""
        try:
            return claims.try_take(key.claim)
        except OSError as err:
            self._rest(err)
            return False

    def publish(self, key: BlockKey, data: memoryview) -> None:
        """Keep a block, evicting others if need be. The caller holds its claim."""
        if self.is_resting:
            return
        try:
            with _publishing:
                self._publish(key, data)
        except OSError as err:
            self._rest(err)

    def drop(self, key: BlockKey) -> None:
        """Forget a block; one that is not there is fine."""
        try:
            self._drop(key)
        except OSError as err:
            self._rest(err)

    @abstractmethod
    def _open_locks(self) -> int:
        """Open the file that the locks are of, for reading and writing."""

    @abstractmethod
    def _read(self, key: BlockKey, start: int, view: memoryview) -> bool: ...

    @abstractmethod
    def _publish(self, key: BlockKey, data: memoryview) -> None: ...

    @abstractmethod
    def _drop(self, key: BlockKey) -> None: ...

    def _rest(self, err: OSError) -> None:
        self._rests_until = time.monotonic() + REST_SEC
        here = (os.getpid(), self.label)
        if here not in _warned:
            _warned.add(here)
            _log.warning("%s", f"{quoted(self.label)} {_reason(err)}; reading goes on without it")


def stop_publishing() -> None:
    """Begin no further block in this process, and wait for one under way: right before `os._exit`, which would leave
    half of it."""
    _publishing.acquire(timeout=SETTLE_SEC)


def _reason(err: OSError) -> str:
    words = err.strerror or str(err)
    if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        return f"can take no more ({words}): make room or give a smaller cache_size"
    return f"cannot be used for now ({words})"
