"""Where a run's checkpoints lie: a folder of the local disk, or a store.

Both take a checkpoint in the same four turns: `begin` makes room, each rank's files are written to a `desk` on the
local disk and handed in, and `commit` makes it complete at one instant. On a disk that is a rename; in a store
`state.json` is put last, because a store renames nothing. What is killed on the way is not complete, is never read, and
is removed when a run starts.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from headrace.storage import (
    Place,
    list_folder,
    locate,
    read_bytes,
    remove,
    sync_folder,
    upload,
    walk,
    write_bytes,
    write_file,
)
from headrace.train.checkpoint import PARTIAL, STATE, complete_checkpoints, name_of, step_of

_ASIDE = ".set-aside"
UPLOADS = "uploads"


class Home(ABC):
    """The checkpoints of one run. All but `desk` and `hand_in` is rank 0's business.

    What the disk or the store refuses is an OSError or a StorageError.
    """

    place: Place

    def complete(self) -> list[Place]:
        """The complete ones, newest first."""
        return complete_checkpoints(self.place)

    def set_aside(self, step: int) -> None:
        """Take those beyond `step`, where the run goes on, out of sight: unreadable, or of a history that is left."""
        for place in self.complete():
            if (step_of(place.name) or 0) > step:
                self._set_aside(place)

    def keep(self, newest: int, best: int | None) -> None:
        """Remove all complete ones but so many of the newest, and the one of the step that was the best."""
        for place in self.complete()[newest:]:
            if step_of(place.name) != best:
                self._remove(place)

    @abstractmethod
    def clean(self) -> None:
        """Remove what a killed process left half-written, before any is written."""

    @abstractmethod
    def begin(self, step: int) -> None:
        """Make room for a checkpoint of this step."""

    @abstractmethod
    def desk(self, step: int) -> Path:
        """The folder that a rank writes its files to."""

    @abstractmethod
    def hand_in(self, step: int, names: Iterable[str]) -> None:
        """A rank's files on its desk are finished."""

    @abstractmethod
    def commit(self, step: int, state: bytes) -> None:
        """All files are there: the checkpoint is complete once this returns."""

    @abstractmethod
    def abandon(self, step: int) -> None:
        """Give up what was begun, as far as it can be removed."""

    @abstractmethod
    def _remove(self, place: Place) -> None:
        """Remove a complete one; what a kill leaves of it is no complete one."""

    @abstractmethod
    def _set_aside(self, place: Place) -> None: ...


class LocalHome(Home):
    """A folder that all ranks share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.place = locate(folder)

    def clean(self) -> None:
        """As `Home.clean`."""
        for path in self._folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(path)

    def begin(self, step: int) -> None:
        """As `Home.begin`."""
        desk = self.desk(step)
        if desk.exists():
            shutil.rmtree(desk)
        desk.mkdir(parents=True)

    def desk(self, step: int) -> Path:
        """As `Home.desk`: the checkpoint's own folder, under a name that is never read."""
        return self._folder / (name_of(step) + PARTIAL)

    def hand_in(self, step: int, names: Iterable[str]) -> None:
        """As `Home.hand_in`: they lie where they belong."""

    def commit(self, step: int, state: bytes) -> None:
        """As `Home.commit`."""
        desk, final = self.desk(step), self._folder / name_of(step)
        write_file(desk / STATE, state)
        if final.exists():
            self._remove(locate(final))  # of a history that this run does not continue
        desk.rename(final)
        sync_folder(self._folder)

    def abandon(self, step: int) -> None:
        """As `Home.abandon`."""
        shutil.rmtree(self.desk(step), ignore_errors=True)

    def _remove(self, place: Place) -> None:
        doomed = self._folder / f"{place.name}.old{PARTIAL}"
        place.path.rename(doomed)
        shutil.rmtree(doomed)

    def _set_aside(self, place: Place) -> None:
        aside = self._folder / (place.name + _ASIDE)
        shutil.rmtree(aside, ignore_errors=True)
        place.path.rename(aside)


class StoreHome(Home):
    """A folder of a store; what is on its way there lies in the run's folder, each rank's for itself."""

    def __init__(self, place: Place, run_dir: Path, rank: int) -> None:
        self.place = place
        self._desk = run_dir / UPLOADS / f"rank{rank}"

    def clean(self) -> None:
        """As `Home.clean`."""
        complete = {place.name for place in self.complete()}
        for entry in list_folder(self.place):
            folder = self.place / entry.name
            is_ours = entry.is_folder and step_of(entry.name) is not None
            if is_ours and entry.name not in complete and not _has(folder, STATE + _ASIDE):
                self._remove(folder)

    def begin(self, step: int) -> None:
        """As `Home.begin`; one of a history that this run does not continue makes room."""
        self._remove(self.place / name_of(step))

    def desk(self, step: int) -> Path:
        """As `Home.desk`: emptied, since a killed process may have left files there."""
        if self._desk.exists():
            shutil.rmtree(self._desk)
        self._desk.mkdir(parents=True)
        return self._desk

    def hand_in(self, step: int, names: Iterable[str]) -> None:
        """As `Home.hand_in`."""
        for name in names:
            upload(self._desk / name, self.place / name_of(step) / name)

    def commit(self, step: int, state: bytes) -> None:
        """As `Home.commit`."""
        write_bytes(self.place / name_of(step) / STATE, state)

    def abandon(self, step: int) -> None:
        """As `Home.abandon`: what lies in the store is left to `clean`, since the store has just refused."""

    def _remove(self, place: Place) -> None:
        remove(place / STATE)
        for entry in list(walk(place)):
            remove(place / entry.name)

    def _set_aside(self, place: Place) -> None:
        write_bytes(place / (STATE + _ASIDE), read_bytes(place / STATE))
        remove(place / STATE)


def home_at(where: str | os.PathLike[str] | Place, run_dir: Path, rank: int) -> Home:
    """The home at a path or a store's URL."""
    place = locate(where)
    return LocalHome(place.path) if place.is_local else StoreHome(place, run_dir, rank)


def _has(folder: Place, name: str) -> bool:
    return any(entry.name == name for entry in list_folder(folder))
