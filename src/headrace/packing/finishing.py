"""Ending shards in the background: flushing one to the disk, or sending it away, takes its time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from headrace.formats import Shard, ShardWriter

_MOST_WAITING = 2  # shards that are ended while the next one is written: their indexes are in memory


class Finisher:
    """Ends shards one after the other, in the order in which they come. Used by one thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="headrace-finish")
        self._waiting: deque[Future[None]] = deque()
        self._has_failed = False

    def submit(self, writer: ShardWriter, keep: Callable[[Shard], None]) -> None:
        """Have a shard ended, and `keep` called with its row. Raises what went wrong with an earlier one."""
        while len(self._waiting) >= _MOST_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._finish, writer, keep))

    def wait(self) -> None:
        """Wait until all shards are ended. Raises what went wrong."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """End what was begun; nothing is raised."""
        self._pool.shutdown()

    def _finish(self, writer: ShardWriter, keep: Callable[[Shard], None]) -> None:
        if self._has_failed:  # what comes behind a shard that is missing could not be gone on from
            writer.abandon()
            return
        try:
            keep(writer.finish())
        except BaseException:
            self._has_failed = True
            writer.abandon()
            raise
