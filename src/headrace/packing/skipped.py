"""The samples that were passed over, and why: a list that may be long, so it waits in a nameless file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from headrace.packing.spool import SpoolFile

_BUFFER_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that is passed over, and why."""

    key: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """A line of the list of skipped samples."""
        return {"key": self.key, "reason": self.reason}


class SkippedList:
    """Skipped samples in the order in which they were met."""

    def __init__(self, folder: Path) -> None:
        """`folder` is where temporary files go."""
        self._folder = folder
        self._file: SpoolFile | None = None
        self._waiting = bytearray()
        self.first: Skipped | None = None
        self.num_samples = 0

    def __len__(self) -> int:
        return self.num_samples

    def add(self, skipped: Skipped) -> None:
        """Add one at the end."""
        self.first = self.first or skipped
        self.num_samples += 1
        self._waiting += line_of(skipped.to_json())
        if len(self._waiting) > _BUFFER_BYTES:
            self._file = self._file or SpoolFile(self._folder)
            self._file.append(self._waiting)
            self._waiting = bytearray()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def blocks(self) -> Iterator[bytes]:
        """The list as JSON lines, in blocks."""
        if self._file is not None:
            for at in range(0, self._file.num_bytes, _BUFFER_BYTES):
                yield self._file.read(at, min(_BUFFER_BYTES, self._file.num_bytes - at))
        yield bytes(self._waiting)


def line_of(value: dict[str, Any]) -> bytes:
    """A JSON object as a line."""
    return orjson.dumps(value) + b"\n"
