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
from headrace.storage import Place, exists, locate
from headrace.telemetry import FILE_NAME
from headrace.train.checkpoint import FOLDER, STATE, complete_checkpoints, read_state, shown
from headrace.train.world import World

logger = logging.getLogger("headrace.train")


@dataclass(frozen=True, slots=True)
class Resumed:
    """The checkpoint that a run goes on from."""

    path: Path | Place
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


def candidates(
    run_dir: Path | None, home: Place | None, resume: str | os.PathLike[str], restarted: bool
) -> list[Place]:
    """The checkpoints to try, in this order; none: start anew. `home` is where the run's own lie.

    `restarted`: an earlier attempt of this same launch is continued, so what it wrote comes first whatever was asked.
    Raises OptionError where `resume` cannot be followed, CheckpointError where it names no checkpoint.
    """
    own = complete_checkpoints(home) if home is not None else []
    if resume == "auto" or (restarted and own):
        return own
    if resume == "never":
        if not restarted and (own or (run_dir is not None and (run_dir / FILE_NAME).exists())):
            raise OptionError(
                f"resume='never' starts anew, but {home if own else run_dir} holds a run: "
                "choose another folder, or resume='auto'"
            )
        return []
    try:
        named = named_checkpoints(resume)
    except CheckpointError as err:
        raise CheckpointError(f"resume must be 'auto', 'never' or the path of a checkpoint or a run: {err}") from err
    if own and home is not None and not all(_lies_in(place, home) for place in named):
        raise OptionError(
            f"{home} holds checkpoints of its own, and {resume} is of another run: choose another folder, since a "
            "restart could not tell the two histories apart"
        )
    return named


def first_readable(places: list[Place], load: Callable[[Place, dict[str, Any]], None], world: World) -> Resumed | None:
    """Load the first of the checkpoints that can be read, and say why others were passed over. Collective.

    Raises CheckpointError when there are some and none can be read: starting anew would lose them without a word.
    """
    reasons: list[str] = []
    for place in places:
        try:
            state = world.agree(lambda place=place: read_state(place))  # type: ignore[misc]
            load(place, state)
        except CheckpointError as err:
            reasons.append(str(err))
            if world.rank == 0:
                logger.warning("checkpoint passed over: %s", err)
            continue
        except StateError as err:
            raise StateError(f"cannot go on from {place}: {err}") from err
        return Resumed(shown(place), state)
    if reasons:
        raise CheckpointError(f"no checkpoint can be read: {reasons[0]}; start anew in another run folder")
    return None


def named_checkpoints(where: str | os.PathLike[str] | Place) -> list[Place]:
    """A checkpoint by its own path or URL; by that of a run, or of a folder of checkpoints, all there, newest first.

    Raises CheckpointError where there is none.
    """
    place = locate(where)
    found = complete_checkpoints(place / FOLDER) or complete_checkpoints(place)
    if not found and exists(place / STATE):
        found = [place]
    if not found:
        raise CheckpointError(f"{place} is neither a checkpoint nor a folder that has some")
    return found


def _lies_in(place: Place, home: Place) -> bool:
    if place.is_local and home.is_local:
        return place.path.resolve().is_relative_to(home.path.resolve())
    return str(place).startswith(f"{home}/")
