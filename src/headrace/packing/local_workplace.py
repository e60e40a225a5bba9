"""A folder on a local disk to write shards into, under a marker that is its lock and its journal."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import xxhash

from headrace.dataset import PARTIAL_NAME
from headrace.errors import StorageError
from headrace.formats import INDEX_SUFFIX, MANIFEST_NAME, Shard
from headrace.packing.journal import FileJournal
from headrace.packing.lock import lock
from headrace.packing.target import may_be_removed
from headrace.packing.workplace import Workplace
from headrace.storage import (
    LocalFile,
    Place,
    locate,
    make_folder,
    remove_file,
    replace_file,
    storage_refusals,
    sync_folder,
)


class LocalWorkplace(Workplace):
    """A folder, made as far as it is missing. Shards are written where they lie."""

    def __init__(self, folder: Path, *, is_temporary: bool = False) -> None:
        """A temporary folder goes with its marker. Raises TargetError if another pack holds the lock."""
        self._folder, self._is_temporary = folder, is_temporary
        self._made = _missing_folders(folder)
        self._is_ours = bool(self._made)
        make_folder(folder)
        self.shards = self.notes = locate(folder)
        self._fd = lock(folder / PARTIAL_NAME)
        try:
            self.journal = FileJournal(self._fd, folder / PARTIAL_NAME)
        except BaseException:
            self.close()
            raise

    def shard_path(self, name: str) -> Path:
        return self._folder / name

    def clear(self, keep: Collection[str] = ()) -> None:
        for path in list(self._folder.iterdir()):
            if path.name not in keep and may_be_removed(path.name):
                remove_file(path)

    def move_to(self, place: Place) -> None:
        for path in sorted(self._folder.iterdir()):
            if path.name not in (MANIFEST_NAME, PARTIAL_NAME):
                replace_file(path, place.path / path.name)

    def check(self) -> None:
        return  # the operating system keeps the lock as long as this process lives

    def remove_marker(self) -> None:
        if self._is_temporary:
            remove_file(self._folder / MANIFEST_NAME)
        remove_file(self._folder / PARTIAL_NAME)
        with storage_refusals("write", self._folder):
            sync_folder(self._folder)
            if self._is_temporary:
                self._folder.rmdir()

    def close(self, *, is_wanted: bool = False) -> None:
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
                if folder.exists():
                    folder.rmdir()

    def _go_back(self) -> None:
        self.journal.go_back(self._has)

    def _note_begun(self) -> None:
        self._is_ours = True
        with storage_refusals("write", self._folder):
            sync_folder(self._folder)

    def _bring(self, names: Collection[str]) -> None:
        return  # they are there

    def _has(self, shard: Shard) -> bool:
        path, index_path = self._folder / shard.file, self._folder / (shard.file + INDEX_SUFFIX)
        if not path.is_file() or path.stat().st_size != shard.bytes or not index_path.is_file():
            return False
        with LocalFile(index_path) as file:
            return xxhash.xxh3_128_hexdigest(file.read(0, file.size)) == shard.index_xxh3_128


def _missing_folders(folder: Path) -> list[Path]:
    """The folders that have to be made for this one to be there, innermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing
