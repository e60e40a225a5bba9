"""The record of a run: one JSON object a line, appended as things happen.

The report and the verdict are computed from this file alone. Every line has `event` (its kind) and `time` (Unix
seconds); docs/report.md lists the kinds and their fields. A line is written in one call and not buffered, so that a
killed process loses at most the line it was writing; a torn last line is left where it is and passed over on reading.
Only what happens many times in a tenth of a second is written together, since a call for each would be what takes the
time then.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from headrace.errors import StorageError

FILE_NAME = "events.jsonl"

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
_TOGETHER_SEC = 0.1


class EventWriter:
    """Appends events to a file. One process writes one file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._waiting: list[dict[str, Any]] = []
        self._written = 0.0
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._end_torn_line()
            atexit.register(self.flush)
        except OSError as err:
            raise StorageError(f"cannot write the run's events to {self.path}: {err.strerror}") from err

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. NaN and infinity become null."""
        self._waiting.append({"event": event, "time": time.time(), **fields})
        self._write_out()

    def write_often(self, event: str, **fields: Any) -> None:
        """The same for what may happen very often: those of a tenth of a second are written together.

        What waits is written with the next event of any kind, on closing, and when the process ends; a killed one
        loses it.
        """
        now = time.time()
        self._waiting.append({"event": event, "time": now, **fields})
        if not 0 <= now - self._written < _TOGETHER_SEC:
            self._write_out()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._write_out()

    def close(self) -> None:
        """Close the file; writing afterwards is an error."""
        atexit.unregister(self.flush)
        try:
            self.flush()
        finally:
            os.close(self._fd)

    def _write_out(self) -> None:
        lines = b"".join([orjson.dumps(event, option=_OPTIONS) for event in self._waiting])
        self._waiting.clear()
        self._written = time.time()
        try:
            while lines:  # a disk that fills up takes a part first, and says why with the rest
                lines = lines[os.write(self._fd, lines) :]
        except OSError as err:
            raise StorageError(f"cannot write the run's events to {self.path}: {err.strerror}") from err

    def _end_torn_line(self) -> None:
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")


def read_events(path: str | Path) -> Iterator[dict[str, Any]]:
    """The events of a run in the order in which they were written; lines that a crash cut off are passed over."""
    try:
        with open(path, "rb") as file:
            for line in file:
                event = _parse(line)
                if event is not None:
                    yield event
    except OSError as err:
        raise StorageError(f"cannot read the run's events from {path}: {err.strerror}") from err


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
