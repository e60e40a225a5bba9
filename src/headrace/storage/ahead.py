"""A file's bytes in order, with several reads under way: what a network needs to be kept busy."""

from __future__ import annotations

import io
from collections import deque
from concurrent.futures import Future

from headrace.storage.calls import begin
from headrace.storage.file import File

AHEAD_BYTES = 8 << 20
"""What sequential reading asks for in one request."""
REQUESTS_AHEAD = 4


class Ahead(io.RawIOBase):
    """A file read from its start on, by a few requests at once. Closing it leaves the file open."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._asked = 0
        self._coming: deque[Future[memoryview]] = deque()
        self._current = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # whatever can be written to
        view = memoryview(buffer).cast("B")
        if not len(self._current):
            self._current = self._next()
        length = min(len(view), len(self._current))
        view[:length] = self._current[:length]
        self._current = self._current[length:]
        return length

    def close(self) -> None:
        self._coming.clear()
        self._current = memoryview(b"")
        super().close()

    def _next(self) -> memoryview:
        while self._asked < self._file.size and len(self._coming) < REQUESTS_AHEAD:
            length = min(AHEAD_BYTES, self._file.size - self._asked)
            self._coming.append(begin(self._file.read, self._asked, length))
            self._asked += length
        return self._coming.popleft().result() if self._coming else memoryview(b"")
