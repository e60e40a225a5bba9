"""The record of a run: one JSON object a line, appended as things happen.

The report and the verdict are computed from this file alone. Every line has `event` (its kind) and `time` (Unix
seconds); docs/report.md lists the kinds and their fields. A line is written in one call and not buffered, so that a
killed process loses at most the line it was writing; a torn last line is left where it is and passed over on reading.
Only what may happen many times in a tenth of a second is written together, by a thread, since a call for each would be
what takes the time then. A file that has grown full becomes a part beside the next one (`parts`).
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from headrace.errors import OptionError, StorageError
from headrace.telemetry import parts

FILE_NAME = "events.jsonl"
RANKS = "ranks"
"""The folder beside it with what other ranks say of their own time: rank-1.jsonl and so on."""

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
_TOGETHER_SEC = 0.1


class EventWriter:
    """Appends events to a file. One process writes one file, from any of its threads."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque()  # which one thread may add to while another takes out
        self._some_wait = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._end_torn_line()
            self._size = os.fstat(self._fd).st_size
        except OSError as err:
            raise self._refused(err) from err
        atexit.register(self._write_out)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event, and write what waits. NaN and infinity become null.

        Raises StorageError where the file cannot be written, and OptionError for a value that JSON has no word for.
        """
        self._waiting.append(_line(event, fields))
        self.flush()

    def write_often(self, event: str, **fields: Any) -> None:
        """The same for what may happen very often: a thread writes those of a tenth of a second together.

        A killed process loses what waits. That it could not be written is raised by a later call.
        """
        self._waiting.append(_line(event, fields))
        if self._error is not None:
            raise self._refused(self._error)
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_together, name="headrace-events", daemon=True)
            self._thread.start()
        if not self._some_wait.is_set():
            self._some_wait.set()

    def flush(self) -> None:
        """Write what waits. Raises StorageError."""
        self._write_out()
        if self._error is not None:
            raise self._refused(self._error)

    def close(self) -> None:
        """Write what waits, and close the file; writing afterwards is an error."""
        atexit.unregister(self._write_out)
        try:
            self.flush()
        finally:
            with self._lock:
                fd, self._fd = self._fd, -1
                os.close(fd)
            self._some_wait.set()

    def _write_together(self) -> None:
        while self._some_wait.wait() and self._fd >= 0:
            time.sleep(_TOGETHER_SEC)
            self._some_wait.clear()
            self._write_out()

    def _write_out(self) -> None:
        """Write what waits, unless the file is closed; what went wrong stays in `_error`."""
        with self._lock:
            lines = b""
            while self._fd >= 0 and self._waiting:
                lines += self._waiting.popleft()
            try:
                while lines:  # a disk that fills up takes a part first, and says why with the rest
                    count = os.write(self._fd, lines)
                    self._size += count
                    lines = lines[count:]
            except OSError as err:
                self._error = err
            if self._size >= parts.PART_BYTES and self._fd >= 0 and self._error is None:
                self._begin_part()

    def _begin_part(self) -> None:
        self._size = 0
        with suppress(OSError):  # a file system without a second name for a file has all in one, a full disk for now
            fd, self._fd = self._fd, parts.begin_part(self.path)
            os.close(fd)

    def _refused(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write the run's events to {self.path}: {error.strerror}")

    def _end_torn_line(self) -> None:
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")


def _line(event: str, fields: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps({"event": event, "time": time.time(), **fields}, option=_OPTIONS)
    except TypeError as err:
        wrong = next((name for name, value in fields.items() if not _is_json(value)), "its fields")
        raise OptionError(
            f"an event holds numbers, texts, lists and dicts: {wrong} of {event!r} cannot be written ({err})"
        ) from err


def _is_json(value: Any) -> bool:
    try:
        orjson.dumps(value, option=_OPTIONS)
    except TypeError:
        return False
    return True


def read_events(path: str | Path) -> Iterator[dict[str, Any]]:
    """The events of a run in the order in which they were written; lines that a crash cut off are passed over.

    Those of its earlier parts come first (`parts`), where `path` is the file that is written to.
    """
    try:
        for line in parts.read_lines(Path(path)):
            event = parse_event(line)
            if event is not None:
                yield event
    except OSError as err:
        raise StorageError(f"cannot read the run's events from {path}: {err.strerror}") from err


def parse_event(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None for a line that is none, as a crash may leave."""
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
