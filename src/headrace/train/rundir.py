"""The folder of a run, and from which checkpoint in it to go on.

Rank 0 looks and decides, all ranks follow: each may see a shared folder at a slightly different moment.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import CheckpointError, OptionError, StateError, TargetError
from headrace.telemetry import FILE_NAME
from headrace.train.checkpoint import FOLDER, complete_checkpoints, read_state
from headrace.train.world import World

logger = logging.getLogger("headrace.train")


@dataclass(frozen=True, slots=True)
class Resumed:
    """The checkpoint that a run goes on from."""

    path: Path
    state: dict[str, Any]


class RunLock:
    """Holds a run folder for one run at a time; the lock ends with the process that holds it."""

    def __init__(self, run_dir: Path) -> None:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as err:
            raise TargetError(f"the run folder {run_dir} cannot be made: {err.strerror}; choose another") from err
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            self.close()
            raise TargetError(
                f"{run_dir} is in use by a run that is under way: wait for it, or choose another"
            ) from err

    def close(self) -> None:
        """Let the folder go."""
        os.close(self._fd)


def candidates(run_dir: Path | None, resume: str | Path, restarted: bool) -> list[Path]:
    """The checkpoints to try, in this order; none: start anew.

    `restarted`: an earlier attempt of this same launch is continued, so what it wrote comes first whatever was asked.
    Raises OptionError where `resume` cannot be followed, CheckpointError where it names no checkpoint.
    """
    own = complete_checkpoints(run_dir / FOLDER) if run_dir is not None else []
    if resume == "auto" or (restarted and own):
        return own
    if resume == "never":
        if run_dir is not None and not restarted and (own or (run_dir / FILE_NAME).exists()):
            raise OptionError(
                f"resume='never' starts anew, but {run_dir} holds a run: choose another folder, or resume='auto'"
            )
        return []
    named = _named(Path(resume))
    if own and run_dir is not None and not all(path.resolve().is_relative_to(run_dir.resolve()) for path in named):
        raise OptionError(
            f"{run_dir} holds checkpoints of its own, and {resume} is of another run: choose another folder, since a "
            "restart could not tell the two histories apart"
        )
    return named


def first_readable(paths: list[Path], load: Callable[[Path, dict[str, Any]], None], world: World) -> Resumed | None:
    """Load the first of the checkpoints that can be read, and say why others were passed over. Collective.

    Raises CheckpointError when there are some and none can be read: starting anew would lose them without a word.
    """
    reasons: list[str] = []
    for path in paths:
        try:
            state = world.agree(lambda path=path: read_state(path))  # type: ignore[misc]
            load(path, state)
        except CheckpointError as err:
            reasons.append(str(err))
            if world.rank == 0:
                logger.warning("checkpoint passed over: %s", err)
            continue
        except StateError as err:
            raise StateError(f"cannot go on from {path}: {err}") from err
        return Resumed(path, state)
    if reasons:
        raise CheckpointError(f"no checkpoint can be read: {reasons[0]}; start anew in another run folder")
    return None


def _named(path: Path) -> list[Path]:
    """A checkpoint by its own path, or the newest readable one of a run by the run's."""
    if (path / FOLDER).is_dir():
        path = path / FOLDER
    found = complete_checkpoints(path) or ([path] if (path / "state.json").is_file() else [])
    if not found:
        raise CheckpointError(
            f"resume must be 'auto', 'never' or the path of a checkpoint or a run: {path} is neither of them"
        )
    return found
