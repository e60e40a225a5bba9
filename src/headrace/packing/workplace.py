"""A local folder in which one process writes shards, under a marker that is its lock and its journal."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import xxhash

from headrace.dataset import PARTIAL_NAME
from headrace.errors import StorageError, TargetError
from headrace.formats import INDEX_SUFFIX, Shard
from headrace.packing.journal import FileJournal, Milestone
from headrace.packing.lock import lock
from headrace.packing.options import Options
from headrace.packing.target import START_OVER, may_be_removed
from headrace.storage import LocalFile, make_folder, quoted, remove_file, storage_refusals, sync_folder


class Workplace:
    """A folder that this process alone writes into, until `unlock`."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, as far as it is missing, and lock it. Raises TargetError if another pack holds the lock."""
        self.folder = folder
        self._made = _missing_folders(folder)
        self.num_shards = 0
        """How many finished shards are there."""
        self._is_ours = bool(self._made)
        make_folder(folder)
        self._fd = lock(folder / PARTIAL_NAME)
        try:
            self.journal = FileJournal(self._fd, folder / PARTIAL_NAME)
        except BaseException:
            self.close()
            raise

    def begin(self, request: str, options: Options) -> None:
        """Go on behind the last finished shard of the same request, or start over.

        Raises TargetError if an earlier pack of another request was cut off here, unless that is to be replaced.
        """
        if self._may_continue(request, options):
            self.journal.go_back(self._has)
            keep = {name for milestone in self.journal.milestones() for name in _files(milestone.shard)}
            self.num_shards = len(keep) // 2
            self._is_ours = True
            self.clear(keep)
            return
        self.journal.start(request)
        self._is_ours = True
        sync_folder(self.folder)
        self.clear()

    def keep(self, milestone: Milestone) -> None:
        """Note a finished shard."""
        self.journal.add(milestone)
        self.num_shards += 1

    def clear(self, keep: Collection[str] = ()) -> None:
        """Remove what an earlier pack wrote and what nobody will need."""
        for path in list(self.folder.iterdir()):
            if path.name not in keep and may_be_removed(path.name):
                remove_file(path)

    def remove_marker(self) -> None:
        """Take the marker away, and with it what an earlier pack of another request left of it."""
        remove_file(self.folder / PARTIAL_NAME)
        with storage_refusals("write", self.folder):
            sync_folder(self.folder)

    def close(self, *, is_wanted: bool = False) -> None:
        """Let go of the lock. A folder without a finished shard is left as it was found, unless it is wanted."""
        if self._fd < 0:
            return
        try:
            if self._is_ours and not self.num_shards and not is_wanted:
                self._leave_nothing()
        finally:
            os.close(self._fd)
            self._fd = -1

    def _leave_nothing(self) -> None:
        with suppress(OSError, StorageError):  # a disk that refuses this too has said why already
            self.clear()
            self.remove_marker()
            for folder in self._made:
                folder.rmdir()

    def _may_continue(self, request: str, options: Options) -> bool:
        skipped = options.on_error == "raise" and any(each.skipped for each in self.journal.milestones())
        if self.journal.request == request and options.resume and not skipped:
            return True
        if any(True for _ in self.journal.milestones()) and options.resume and not options.overwrite:
            raise TargetError(
                f"{quoted(self.folder)} was left half-done by a pack of another source or options: {START_OVER}"
            )
        return False

    def _has(self, shard: Shard) -> bool:
        path, index_path = (self.folder / name for name in _files(shard))
        if not path.is_file() or path.stat().st_size != shard.bytes or not index_path.is_file():
            return False
        with LocalFile(index_path) as file:
            return xxhash.xxh3_128_hexdigest(file.read(0, file.size)) == shard.index_xxh3_128


def _files(shard: Shard) -> tuple[str, str]:
    return shard.file, shard.file + INDEX_SUFFIX


def _missing_folders(folder: Path) -> list[Path]:
    """The folders that have to be made for this one to be there, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing
