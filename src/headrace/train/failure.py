"""What went wrong on a rank, left in the run's folder for the launcher to show.

When a model raises on one rank, its peers fail too, by lost connections that say nothing. So each rank leaves a record
of its own error, with its time; the launcher shows the first. Workers that are started again find a record and end at
once, because the same error would come again. A full disk is such an error, and is told like any other: room for the
records is taken when a launch begins. Needs no torch.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace import errors
from headrace.errors import HeadraceError, StorageError, TrainingError

FOLDER = "errors"
_ROOM_BYTES = 128 << 10
_MESSAGE_CHARS, _TRACEBACK_CHARS = 2_000, 8_000  # so many fit, even at JSON's 12 bytes a character


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
        message = str(error)[:_MESSAGE_CHARS]
        return cls(rank, step, type(error).__name__, message, text[-_TRACEBACK_CHARS:], time.time())

    @property
    def first_line(self) -> str:
        """What the message begins with."""
        return (self.message.strip() or "no message").splitlines()[0]

    def error(self) -> HeadraceError:
        """The error to raise in the launcher, of the same kind if it was one of ours; its note is the traceback."""
        kind = getattr(errors, self.type, None)
        where = f"rank {self.rank}" if self.step is None else f"rank {self.rank}, step {self.step}"
        error: HeadraceError
        if isinstance(kind, type) and issubclass(kind, HeadraceError):
            error = kind(f"{where}: {self.first_line}")
        else:
            error = TrainingError(f"{where}: {self.type}: {self.first_line}")
        error.add_note(self.traceback)
        return error


@contextmanager
def room_for_failures(run_dir: Path, num_ranks: int) -> Iterator[None]:
    """Forget the records of an earlier launch, and hold room on the disk for those of this one while the block runs.

    Raises StorageError where there is none.
    """
    folder = run_dir / FOLDER
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("rank*"):
                path.unlink(missing_ok=True)  # another machine may begin at this moment, too
            for rank in range(num_ranks):
                with open(_partial(folder, rank), "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, _ROOM_BYTES)
        except OSError as err:
            raise StorageError(
                f"cannot write to the run's folder {run_dir}: {err.strerror}; make room, or choose --run DIR"
            ) from err
        yield
    finally:
        for rank in range(num_ranks):
            _partial(folder, rank).unlink(missing_ok=True)


def record_failure(run_dir: Path, failure: Failure) -> None:
    """Leave the record; it appears whole or not at all."""
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder, failure.rank)
    # Not truncated before it is written: the room that is held may be the last there is.
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
        file.write(json.dumps(asdict(failure)).encode())
        file.truncate()
    partial.replace(folder / f"rank{failure.rank}.json")


def first_failure(run_dir: Path) -> Failure | None:
    """The earliest record, if any."""
    found = [Failure(**json.loads(path.read_text())) for path in (run_dir / FOLDER).glob("rank*.json")]
    return min(found, key=lambda failure: failure.time, default=None)


def _partial(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.partial"
