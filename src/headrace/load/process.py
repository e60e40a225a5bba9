"""A process of ours that is watched: whoever waits for it learns when it ends or hangs, of what, and where."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from headrace.load.launch import exit_reason, start_interpreter
from headrace.load.marks import STACKS_SIGNAL, Doing, Mark, Marks, Where

END_WITHIN_SEC = 5.0
STACKS_WITHIN_SEC = 2.0
START_WITHIN_SEC = 120.0
"""A process that has marked nothing yet is starting: it is not taken for hung before this."""
_LONGEST_LOOK_SEC = 2.0
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


class ProcessLostError(Exception):
    """A process ended unasked, or hung and was ended. What it was at is in `marks`."""

    def __init__(self, reason: str, marks: list[Mark], stacks: str = "", from_outside: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.time = time.time()
        self.marks = marks
        self.stacks = stacks
        self.from_outside = from_outside
        """Whether anybody's signal may have ended it, not only what it did itself."""

    @property
    def samples(self) -> list[Where]:
        """The samples that were being transformed."""
        return [(mark.epoch, mark.position) for mark in self.marks if mark.doing is Doing.SAMPLE]


class _HungError(Exception):
    """Nothing went on for too long; the seconds."""


class Process:
    """A fresh interpreter that runs `module.main(our pid, channel_fd, marks_fd, *fds)`. Used by one thread."""

    def __init__(
        self,
        module: str,
        num_lanes: int,
        hang_timeout_sec: float | None,
        *fds: int,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """`meanwhile` is called now and then while somebody waits for the process."""
        self._timeout_sec = hang_timeout_sec
        self._meanwhile = meanwhile
        self._seen: bytes | None = None
        self._beats = 0
        self._unchanged_sec = self._looked = 0.0
        self.marks = Marks.create(num_lanes)
        try:
            self._process, self._channel = start_interpreter(module, self.marks.fd, *fds, meanwhile=self._look)
        except BaseException:
            self.marks.close()
            raise

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        """Send one message. Raises ProcessLostError."""
        self._watched(self._channel.send, message, fds)

    def send_bytes(self, body: bytes) -> None:
        """Send a message that is pickled already. Raises ProcessLostError."""
        self._watched(self._channel.send_bytes, body)

    def receive(self) -> tuple[Any, list[int]]:
        """The next message and the descriptors that came with it. Raises ProcessLostError."""
        return self._watched(self._channel.receive)  # type: ignore[no-any-return]

    def has_message(self) -> bool:
        """Whether `receive` would have an answer at once."""
        return self._channel.has_message()

    def end(self) -> None:
        """End the process, which is given a while to do so by itself, and let go of what belongs to it."""
        self._channel.close()
        try:
            self._wait()
        finally:
            self.marks.close()

    def _watched(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self._seen = None
        try:
            return call(*arguments)
        except _HungError as hung:
            raise self._hung(f"hung for {hung.args[0]:g} s") from None
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self._wait()
            lost = ProcessLostError(exit_reason(code), self.marks.marks(), self.marks.stacks(), code in _FROM_OUTSIDE)
            raise lost from None

    def _look(self) -> None:
        """Called twice a second while nothing comes. Raises _HungError where nothing has changed for too long.

        Looks are added up, none counting for more than a moment, so that a machine that was asleep has not hung.
        """
        self._meanwhile()
        now, found, beats = time.monotonic(), self.marks.snapshot(), self.marks.beats
        # A store is waited for within the store's own deadline; but only a process that runs can keep one.
        awaits_store = beats != self._beats and any(mark.doing is Doing.STORE for mark in self.marks.marks())
        self._beats = beats
        if found != self._seen or awaits_store:
            self._seen, self._unchanged_sec = found, 0.0
        else:
            self._unchanged_sec += min(now - self._looked, _LONGEST_LOOK_SEC)
        self._looked = now
        if self._timeout_sec is not None:
            limit = self._timeout_sec if found else max(self._timeout_sec, START_WITHIN_SEC)
            if self._unchanged_sec >= limit:
                raise _HungError(limit)

    def _hung(self, reason: str) -> ProcessLostError:
        """Ask for the stacks, then end it. What does not answer (it may be stopped) is ended all the same."""
        marks = self.marks.marks()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, STACKS_SIGNAL)
        self.marks.wait_for_stacks(STACKS_WITHIN_SEC)
        self._process.kill()
        self._process.wait()
        return ProcessLostError(reason, marks, self.marks.stacks())

    def _wait(self) -> int:
        """Wait for its end, and force it where it takes too long; its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            try:
                self._process.wait(END_WITHIN_SEC)
            finally:  # also where an interrupt ends the wait
                self._process.kill()
                self._process.wait()
        return self._process.returncode
