"""Memory for runs, used again: on pages touched for the first time a copy takes three times as long.

A buffer is taken again only when nobody holds a view of it any more, which its reference count tells; so a function of
the user's that keeps a view of a sample keeps its bytes.
"""

from __future__ import annotations

import sys
import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

_STEP = 64 << 10  # sizes are rounded up to multiples of this, or of an eighth, so that few differ
_NUM_TRIED = 4


def _references_if_free() -> int:
    """References to a buffer that nobody else has, as `take` counts them: Python 3.14 borrows the local name's."""
    waiting = deque([np.empty(1, np.uint8)])
    buffer = waiting.popleft()
    return sys.getrefcount(buffer)


_OURS = _references_if_free()


class BufferPool:
    """Buffers by size. Thread-safe. At most `max_free_bytes` wait to be used again."""

    def __init__(self, max_free_bytes: int) -> None:
        self._max_free_bytes = max_free_bytes
        self._free: dict[int, deque[NDArray[np.uint8]]] = {}
        self._free_bytes = 0
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """A buffer of at least that many bytes; what is in it is anything."""
        size = _rounded(num_bytes)
        with self._lock:
            free = self._free.get(size)
            for _ in range(min(_NUM_TRIED, len(free) if free else 0)):
                assert free is not None
                buffer = free.popleft()
                if sys.getrefcount(buffer) == _OURS:
                    self._free_bytes -= size
                    return buffer
                free.append(buffer)
        return np.empty(size, np.uint8)

    def give(self, buffer: NDArray[np.uint8]) -> None:
        """Offer a buffer for use again; views of it stay valid as long as they are held."""
        with self._lock:
            if self._free_bytes + len(buffer) <= self._max_free_bytes:
                self._free_bytes += len(buffer)
                self._free.setdefault(len(buffer), deque()).append(buffer)


def _rounded(num_bytes: int) -> int:
    step = max(_STEP, 1 << max(0, num_bytes.bit_length() - 3))
    return -(-num_bytes // step) * step
