"""Feeds sinks with the events of a run while it goes on.

Each sink has a thread of its own that reads what is new in the run's file. The file is the queue: nothing is kept in
memory for a server that is gone, and what it missed comes once it is back, or with the run's next start. What a sink
raises ends neither the run nor the thread: it is told in one line, written into the record, and tried again.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace.errors import StorageError
from headrace.sinks.cursor import Cursor
from headrace.sinks.sink import Output, Sink, told
from headrace.telemetry import FILE_NAME, Tail, num_bytes

logger = logging.getLogger("headrace.sinks")

Write = Callable[..., None]
"""`write(event, **fields)`: into the run's record."""

_LOOK_SEC = 0.5
_BATCH = 1000
_FIRST_PAUSE_SEC, _LONGEST_PAUSE_SEC = 1.0, 60.0
END_SEC, _END_FAILED_SEC = 10.0, 2.0
_OUTCOMES = {"start": None, "end": "complete", "stop": "stopped", "error": "failed"}


class Feed:
    """Hands one run's events to one sink. For one thread at a time."""

    def __init__(self, sink: Sink, run_dir: Path) -> None:
        self.sink = sink
        self.where = sink.target(run_dir)
        """Where it goes; more exactly once it is open."""
        self.delivered = 0
        """Events that were handed over."""
        self._run_dir = run_dir
        self._path = run_dir / FILE_NAME
        self._output: Output | None = None
        self._cursor: Cursor | None = None
        self._outcome: str | None = None
        # A sink that keeps nothing is told of this attempt only: earlier ones had their own.
        self._first = 0 if sink.keeps else num_bytes(self._path)
        self._tail = Tail(self._path)
        self._held: deque[int] = deque()
        """Where the events begin that the sink holds back."""

    def deliver(self) -> None:
        """Hand over all that is there. Raises what the sink raises, and then begins anew at the next call."""
        try:
            output = self._output or self._open()
            while self._deliver_some(output):
                pass
        except BaseException:
            self._give_up()
            raise

    def finish(self, outcome: str | None) -> None:
        """Hand over all, and end the sink. `outcome` counts where the events do not say one."""
        self.deliver()
        output, self._output = self._output, None
        assert output is not None
        try:
            output.close(self._outcome or outcome)
            self._save(output)
        finally:
            self._let_go()

    def _open(self) -> Output:
        at, memory = self._first, {}
        if self.sink.keeps:
            # The same target wherever the run's folder lies, and whatever way leads to it.
            self._cursor = Cursor(self._run_dir, self.sink.name, self.sink.target(Path("RUN")))
            at, memory = self._cursor.at, dict(self._cursor.memory)
        # Events that were deleted and begun anew are another history.
        self._tail = Tail(self._path, at if at <= num_bytes(self._path) else 0)
        self._held.clear()
        self._output = self.sink.open(self._run_dir, memory)
        self.where = self._output.where
        if self._cursor is not None:
            self._cursor.save(self._tail.at, self._output.memory)  # before anything can cut it off
        return self._output

    def _deliver_some(self, output: Output) -> int:
        count, begins_at = 0, self._tail.at
        for event in islice(self._tail.new_events(), _BATCH):
            count += 1
            self._held.append(begins_at)
            begins_at = self._tail.at
            self._outcome = _OUTCOMES.get(event["event"], self._outcome)
            output.take(event)
            while len(self._held) > output.held:
                self._held.popleft()
        output.flush()
        self.delivered += count
        if count and self._cursor is not None:
            # The sink has everything up to the first event that waits for others.
            self._cursor.save(self._held[0] if self._held else self._tail.at, output.memory)
        return count

    def _save(self, output: Output) -> None:
        if self._cursor is not None:
            self._cursor.save(self._tail.at, output.memory)

    def _give_up(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            with suppress(Exception):  # it has failed already, and that is what is told
                output.abandon()
        self._let_go()

    def _let_go(self) -> None:
        cursor, self._cursor = self._cursor, None
        if cursor is not None:
            cursor.close()


class Sinks:
    """Feeds all sinks of an attempt at a run, each in a thread, while a `with` block runs."""

    def __init__(self, sinks: Sequence[Sink], run_dir: Path, write: Write, end_sec: float = END_SEC) -> None:
        """`write` is called from any thread; the run's file of events is there. `end_sec`: see `close`."""
        self._end_sec = end_sec
        self._feeders = [_Feeder(Feed(sink, run_dir), write) for sink in sinks]
        self._closed = False
        for feeder in self._feeders:
            feeder.start()
        if self._feeders:
            atexit.register(self.close)

    def close(self, *, failed: bool = False) -> None:
        """Wait for what is on its way, `end_sec` at most (2 seconds where the run has failed); once."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        deadline = time.monotonic() + min(self._end_sec, _END_FAILED_SEC if failed else END_SEC)
        for feeder in self._feeders:
            feeder.ask_to_end("failed" if failed else None)
        for feeder in self._feeders:
            feeder.wait(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)


class _Feeder:
    """The thread of one sink. A daemon: a library that hangs must not keep the process from ending."""

    def __init__(self, feed: Feed, write: Write) -> None:
        self._feed = feed
        self._write = write
        self._name = feed.sink.name
        self._ending = threading.Event()
        self._outcome: str | None = None
        self._state: str | None = None
        self._warned = False
        self._pause_sec = _FIRST_PAUSE_SEC
        self._thread = threading.Thread(target=self._run, name=f"headrace-sink-{self._name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_to_end(self, outcome: str | None) -> None:
        self._outcome = outcome
        self._ending.set()

    def wait(self, timeout_sec: float) -> None:
        self._thread.join(timeout_sec)
        if self._thread.is_alive():
            self._failed("it does not answer")
            self._missed()

    def _run(self) -> None:
        while not self._ending.is_set():
            if self._try(self._feed.deliver):
                self._ending.wait(_LOOK_SEC)
            else:
                self._ending.wait(self._pause_sec)
                self._pause_sec = min(2 * self._pause_sec, _LONGEST_PAUSE_SEC)  # for good: it may fail time and again
        if not self._try(lambda: self._feed.finish(self._outcome)):
            self._missed()

    def _try(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as err:  # the libraries behind sinks raise anything
            self._failed(told(err))
            return False
        self._tell("on", where=self._feed.where)
        return True

    def _failed(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("the sink %s (%s) failed, and the run goes on without it: %s", *self._shown(), reason)
        self._tell("failed", where=self._feed.where, message=reason)

    def _missed(self) -> None:
        if self._feed.sink.keeps:
            logger.warning(
                "the sink %s (%s) lacks the last events of the run: headrace send RUN --sink %s sends them",
                *self._shown(),
                self._name,
            )

    def _shown(self) -> tuple[str, str]:
        return self._name, self._feed.where

    def _tell(self, state: str, **fields: Any) -> None:
        """Write it into the record where it has changed."""
        if state != self._state:
            self._state = state
            with suppress(StorageError):  # the disk is full, which the run's own next event says
                self._write("sink", sink=self._name, state=state, **fields)
