"""A function over many items by threads, with results in the items' order and a bound on what waits in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")

MEMORY_BYTES = 256 << 20
"""Bound on the samples in flight, as far as their sizes are known; a single one may be larger."""

_ITEMS_PER_WORKER = 16
# Enough to even out fast and slow items, few enough that a thousand small ones do not wait behind a slow one.


def ordered_map(
    function: Callable[[_T], _R], items: Iterable[_T], workers: int, size: Callable[[_T], int]
) -> Iterator[_R]:
    """`function` of each item, in order. What it raises is raised here, at the item's turn.

    `items` is taken from by the calling thread, ahead of what is yielded. `size` is an item's bytes in memory.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="headrace-pack")
    waiting: deque[tuple[Future[_R], int]] = deque()
    num_bytes = 0
    try:
        for item in items:
            item_bytes = size(item)
            while waiting and (num_bytes + item_bytes > MEMORY_BYTES or len(waiting) >= workers * _ITEMS_PER_WORKER):
                future, done_bytes = waiting.popleft()
                num_bytes -= done_bytes
                yield future.result()
            waiting.append((pool.submit(function, item), item_bytes))
            num_bytes += item_bytes
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)
