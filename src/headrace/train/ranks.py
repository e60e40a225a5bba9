"""What each rank other than 0 says of its own time: a line in RUN/ranks/rank-N.jsonl from time to time.

Ranks tell nobody but their own file, so that no step waits for another rank's account. Rank 0's is the run's record.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from headrace.telemetry import RANKS, EventWriter

_LEAST_SEC, _MOST_SEC, _SHARE = 5.0, 60.0, 0.05
"""Between two lines: a twentieth of the time since the attempt began, within these bounds."""


class RankRecord:
    """Adds up the steps of one rank; a `Record`, as rank 0 has one of the whole run."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        """Raises StorageError where the file cannot be written."""
        folder = run_dir / RANKS
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventWriter(folder / f"rank-{rank}.jsonl")
        self._rank = rank
        self._first: int | None = None
        self._opened = self._written = time.monotonic()
        self._begin()

    def write(self, event: str, **fields: Any) -> None:
        """Note that the attempt begins, or ends; of all else rank 0 tells."""
        if event == "start":
            names = ("attempt", "step", "world_size")
            known = {name: fields[name] for name in names if name in fields}
            self._writer.write("start", rank=self._rank, pid=os.getpid(), host=platform.node(), **known)
        elif event in ("stop", "end"):
            self._write()

    def write_often(self, event: str, **fields: Any) -> None:
        """Add a step. The first of an attempt, which starts everything up, is left out."""
        if event != "step":
            return
        self._step = fields["step"]
        if self._first is None:
            self._first = self._step
            return
        self._steps += 1
        sums = self._sums
        for name, value in fields.items():
            if name == "sec" or name.endswith("_sec"):
                sums[name] = sums.get(name, 0.0) + (value or 0.0)
        now = time.monotonic()
        if now - self._written >= min(_MOST_SEC, max(_LEAST_SEC, _SHARE * (now - self._opened))):
            self._write()

    def flush(self) -> None:
        """What waits is a sum that goes on."""

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._write()
        self._writer.close()

    def _begin(self) -> None:
        self._steps, self._sums = 0, dict[str, float]()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._steps:
            self._writer.write("rank", rank=self._rank, step=self._step, steps=self._steps, **self._sums)
            self._begin()
