"""Where new shards lie until they are a dataset, written by one process alone, with a journal to go on from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from headrace.errors import TargetError
from headrace.formats import INDEX_SUFFIX, Shard
from headrace.packing.journal import Journal, Milestone
from headrace.packing.options import Options
from headrace.packing.target import START_OVER
from headrace.storage import Place


class Workplace(ABC):
    """Shards that are written, and the notes about them: this process's alone until `close`."""

    shards: Place
    """Where shards lie."""
    notes: Place
    """Where the journal lies. Its name keeps that folder from opening as a dataset."""
    journal: Journal
    num_shards: int = 0
    """How many finished shards are there."""
    _others: frozenset[str] = frozenset()
    """Names of files here that are not of this pack."""

    def begin(self, request: str, options: Options, keep: Collection[str] = ()) -> None:
        """Go on behind the last finished shard of the same request, or start over.

        `keep` are the names of files that belong to others. Raises TargetError if an earlier pack of another request
        was cut off here, unless that is to be replaced.
        """
        own: set[str] = set()
        self._others = frozenset(keep)
        if self._may_continue(request, options):
            self._go_back()
            own = {name for milestone in self.journal.milestones() for name in _files_of(milestone.shard)}
        else:
            self.journal.start(request)
        self.num_shards = len(own) // 2
        self._note_begun()
        self.clear({*keep, *own})

    def keep(self, milestone: Milestone) -> None:
        """Bring a finished shard and its index to where shards lie, and note it."""
        self._bring([milestone.shard.file, milestone.shard.file + INDEX_SUFFIX])
        self.journal.add(milestone)
        self.num_shards += 1

    @abstractmethod
    def shard_path(self, name: str) -> Path:
        """Where on the local disk a shard is written."""

    @abstractmethod
    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove what an earlier pack wrote and what nobody will need."""

    @abstractmethod
    def move_to(self, place: Place) -> None:
        """Bring all that was made, the manifest aside, to where the dataset lies. May be done again."""

    @abstractmethod
    def check(self) -> None:
        """Raise TargetError if this process may not write here any more."""

    @abstractmethod
    def remove_marker(self) -> None:
        """Take the journal away: what is here is a dataset now, or nothing."""

    @abstractmethod
    def close(self, *, is_wanted: bool = False) -> None:
        """Let go. Without a finished shard the place is left as it was found, unless it is wanted."""

    @abstractmethod
    def _go_back(self) -> None:
        """Forget what the journal says from the first shard on that is not there."""

    @abstractmethod
    def _note_begun(self) -> None:
        """What is here from now on is this process's own."""

    @abstractmethod
    def _bring(self, names: Collection[str]) -> None:
        """Bring finished files to where shards lie."""

    def _may_continue(self, request: str, options: Options) -> bool:
        skipped = options.on_error == "raise" and any(each.skipped for each in self.journal.milestones())
        if self.journal.request == request and options.resume and not skipped:
            return True
        if any(True for _ in self.journal.milestones()) and options.resume and not options.overwrite:
            raise TargetError(f"{self.notes} was left half-done by a pack of another source or options: {START_OVER}")
        return False


def _files_of(shard: Shard) -> tuple[str, str]:
    return shard.file, shard.file + INDEX_SUFFIX
