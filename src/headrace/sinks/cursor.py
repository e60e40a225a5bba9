"""What a sink was given of a run so far, kept in the run's folder, so that a restart goes on where it was."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

import orjson

from headrace.errors import TargetError

FOLDER = "sinks"


class Cursor:
    """RUN/sinks/NAME-HASH.json, held for one process at a time; the lock ends with the process.

    The hash is of the target, so that a run may be sent to several of a kind, each of which has a file.
    """

    def __init__(self, run_dir: Path, name: str, target: str) -> None:
        """Raises TargetError where another process feeds the same sink, OSError where the file cannot be written."""
        folder = run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}-{hashlib.sha256(target.encode()).hexdigest()[:8]}.json"
        self._target = target
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            self.close()
            raise TargetError(f"the sink {name} of {run_dir} is fed by another process: wait for its end") from err
        kept = self._read()
        known = kept.get("target") == target and isinstance(kept.get("at"), int)
        self.at: int = kept["at"] if known else 0
        """Bytes of the run's events that the sink has."""
        self.memory: dict[str, Any] = kept.get("memory") or {} if known else {}
        """What the sink must know to go on."""

    def save(self, at: int, memory: dict[str, Any]) -> None:
        """The sink has all up to `at`. Raises OSError."""
        if (at, memory) == (self.at, self.memory):
            return
        self.at, self.memory = at, dict(memory)
        line = orjson.dumps({"target": self._target, "at": at, "memory": memory}, option=orjson.OPT_APPEND_NEWLINE)
        # In place, since the lock is on this file. Cut off between the two it has a whole line still, which counts.
        os.pwrite(self._fd, line, 0)
        os.ftruncate(self._fd, len(line))

    def close(self) -> None:
        """Let others feed the sink."""
        os.close(self._fd)

    def _read(self) -> dict[str, Any]:
        line = os.pread(self._fd, 1 << 20, 0).partition(b"\n")[0]
        try:
            kept = orjson.loads(line)
        except orjson.JSONDecodeError:  # a new file; one that was spoilt costs points that come twice
            return {}
        return kept if isinstance(kept, dict) else {}
