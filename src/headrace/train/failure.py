"""What went wrong on a rank, left in the run's folder for the launcher to show.

When a model raises on one rank, its peers fail too, by lost connections that say nothing. So each rank leaves a record
of its own error, with its time; the launcher shows the first. Workers that are started again find a record and end at
once, because the same error would come again. Needs no torch.
"""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace import errors
from headrace.errors import HeadraceError, TrainingError

FOLDER = "errors"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that ended a rank."""

    rank: int
    step: int | None
    """The step that was being made, counted from 1; None before training began."""
    type: str
    message: str
    traceback: str
    time: float
    """Unix seconds."""

    @classmethod
    def of(cls, error: BaseException, rank: int, step: int | None) -> Failure:
        """The record of an error that was just raised."""
        text = "".join(traceback.format_exception(error))
        return cls(rank, step, type(error).__name__, str(error), text, time.time())

    def error(self) -> HeadraceError:
        """The error to raise in the launcher, of the same kind if it was one of ours; its note is the traceback."""
        kind = getattr(errors, self.type, None)
        where = f"rank {self.rank}" if self.step is None else f"rank {self.rank}, step {self.step}"
        first_line = (self.message.strip() or "no message").splitlines()[0]
        error: HeadraceError
        if isinstance(kind, type) and issubclass(kind, HeadraceError):
            error = kind(f"{where}: {first_line}")
        else:
            error = TrainingError(f"{where}: {self.type}: {first_line}")
        error.add_note(self.traceback)
        return error


def record_failure(run_dir: Path, failure: Failure) -> None:
    """Leave the record; it appears whole or not at all."""
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank{failure.rank}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(failure)))
    partial.replace(path)


def first_failure(run_dir: Path) -> Failure | None:
    """The earliest record, if any."""
    found = [Failure(**json.loads(path.read_text())) for path in (run_dir / FOLDER).glob("rank*.json")]
    return min(found, key=lambda failure: failure.time, default=None)


def clear_failures(run_dir: Path) -> None:
    """Forget the records of an earlier launch."""
    for path in (run_dir / FOLDER).glob("rank*"):
        path.unlink()
