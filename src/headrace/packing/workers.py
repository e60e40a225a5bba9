"""A function over many items by threads, with results in the items' order and a bound on what waits in memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from headrace.packing.source import Loader

_T = TypeVar("_T")
_R = TypeVar("_R")

MEMORY_BYTES = 96 << 20
"""Bound on the samples in flight, as far as their sizes are known; a single one may be larger."""

CHUNK_ITEMS, CHUNK_BYTES = 32, 1 << 20
"""What one worker gets at a time: enough that handing it over costs little beside the work itself."""

_TRIAL_SEC = 0.1
"""How long the calling thread works before it is asked whether it waits."""

_LEAST_WAITING = 16
_CHUNKS_PER_WORKER = 4
# Enough to even out fast and slow chunks, few enough that a thousand small ones do not wait behind a slow one.


def num_threads(loader: Loader, workers: int) -> int:
    """How many threads load samples; where they wait for a network, a processor has time for many."""
    return max(workers, _LEAST_WAITING) if loader.waits else workers


def in_chunks(items: Iterable[_T], size: Callable[[_T], int]) -> Iterator[tuple[list[_T], int]]:
    """The items in lists for one worker each, with their bytes in memory."""
    chunk: list[_T] = []
    num_bytes = 0
    for item in items:
        chunk.append(item)
        num_bytes += size(item)
        if len(chunk) >= CHUNK_ITEMS or num_bytes >= CHUNK_BYTES:
            yield chunk, num_bytes
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk, num_bytes


def ordered_map(
    function: Callable[[_T], _R],
    items: Iterable[tuple[_T, int]],
    workers: int,
    close: Callable[[], None] = lambda: None,
) -> Generator[_R, None, None]:
    """`function` of each item, in order; each item comes with its bytes in memory.

    What the function raises is raised here, at the item's turn. `items` is taken from by the calling thread, ahead of
    what is yielded. `close` ends whatever the function waits for, however the iteration ends; with 0 workers the
    function is called by the calling thread.
    """
    if not workers:
        yield from (function(item) for item, _ in items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="headrace-pack")
    waiting: deque[tuple[Future[_R], int]] = deque()
    num_bytes = 0
    try:
        for item, item_bytes in items:
            while waiting and (num_bytes + item_bytes > MEMORY_BYTES or len(waiting) >= workers * _CHUNKS_PER_WORKER):
                future, done_bytes = waiting.popleft()
                num_bytes -= done_bytes
                yield future.result()
            waiting.append((pool.submit(function, item), item_bytes))
            num_bytes += item_bytes
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        close()
        pool.shutdown()


def ordered_map_if_waiting(
    function: Callable[[_T], _R], items: Iterable[tuple[_T, int]], workers: int
) -> Generator[_R, None, None]:
    """As `ordered_map`, for a function that computes little and may wait for the disk: by threads once it does.

    Until more than half of its time is waiting, the calling thread is the fastest: threads that take turns on the
    interpreter lock at every read cost more than a file that the page cache holds.
    """
    rest = iter(items)
    wall_sec = busy_sec = 0.0
    for item, _ in rest:
        began, began_busy = time.perf_counter(), time.thread_time()
        result = function(item)
        wall_sec += time.perf_counter() - began
        busy_sec += time.thread_time() - began_busy
        yield result
        if wall_sec < _TRIAL_SEC:
            continue
        if busy_sec < wall_sec / 2:
            break
        wall_sec = busy_sec = 0.0
    yield from ordered_map(function, rest, workers)
