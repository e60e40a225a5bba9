"""The events of a run as they are written, read from its file.

Who follows a run reads its file and nothing else, so the run pays nothing for being followed, and who falls behind, or
begins late, loses nothing: the file keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.errors import StorageError
from headrace.telemetry.events import parse_event
from headrace.telemetry.parts import num_bytes, read_lines


class Tail:
    """Reads a run's events from a place on. The file need not be there yet. For one thread."""

    def __init__(self, path: str | Path, at: int = 0) -> None:
        """`at`: bytes from the beginning of the first part to leave out; where a line begins."""
        self.path = Path(path)
        self.at = at
        """Bytes up to the end of the event that was given last."""

    def new_events(self) -> Iterator[dict[str, Any]]:
        """The events from there to the end of the file; a line that is not whole yet comes another time.

        Raises StorageError where the file cannot be read.
        """
        try:
            for line in read_lines(self.path, self.at):
                if not line.endswith(b"\n"):
                    return
                self.at += len(line)
                event = parse_event(line)
                if event is not None:
                    yield event
        except FileNotFoundError:
            return
        except OSError as err:
            raise self._unreadable(err) from err

    def is_beyond_end(self) -> bool:
        """Whether there is less than was read: the events were deleted, or begun anew. Raises StorageError."""
        try:
            return self.at > num_bytes(self.path)
        except OSError as err:
            raise self._unreadable(err) from err

    def _unreadable(self, err: OSError) -> StorageError:
        return StorageError(f"cannot read the run's events from {self.path}: {err.strerror}")
