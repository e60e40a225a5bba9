"""A place in a store to send shards to: each is written to the local disk, sent as it is finished, and noted."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from headrace.dataset import PARTIAL_NAME
from headrace.errors import StorageError, TargetError
from headrace.formats import INDEX_SUFFIX, MANIFEST_NAME, Shard
from headrace.packing.journal import StoredJournal
from headrace.packing.scratch import ScratchFolder
from headrace.packing.target import LOCK_NAME, SKIPPED_NAME, may_be_removed, names_in
from headrace.packing.workplace import Workplace
from headrace.storage import Lease, Place, exists, list_folder, read_bytes, remove, upload, write_bytes

_log = logging.getLogger("headrace.packing")


class RemoteWorkplace(Workplace):
    """A prefix in a store. Nothing can be renamed there, so shards are sent to where they stay."""

    def __init__(self, home: Place, notes: Place) -> None:
        """`home` is where the dataset lies or will lie. Raises TargetError if another process writes there."""
        self.shards, self.notes = home, notes
        self._is_ours = False
        self._scratch = ScratchFolder(Path(tempfile.gettempdir()))
        self._lease: Lease | None = None
        try:
            lease = Lease(home / LOCK_NAME)
            lease.acquire(_log.warning)
            self._lease = lease
            self.journal = StoredJournal(notes / PARTIAL_NAME)
        except BaseException:
            self.close()
            raise

    def shard_path(self, name: str) -> Path:
        return self._scratch.path / name

    def clear(self, keep: Collection[str] = ()) -> None:
        for name in names_in(self.shards):
            if name not in keep and may_be_removed(name):
                remove(self.shards / name)

    def move_to(self, place: Place) -> None:
        if exists(self.notes / SKIPPED_NAME):  # shards are there already
            write_bytes(place / SKIPPED_NAME, read_bytes(self.notes / SKIPPED_NAME))

    def check(self) -> None:
        assert self._lease is not None
        self._lease.check()

    def remove_marker(self) -> None:
        if self.notes != self.shards:
            for name in (SKIPPED_NAME, MANIFEST_NAME):
                remove(self.notes / name)
        remove(self.notes / PARTIAL_NAME)

    def close(self, *, is_wanted: bool = False) -> None:
        try:
            if self._lease is not None and self._is_ours and not self.num_shards and not is_wanted:
                with suppress(StorageError, TargetError):  # a store that refuses this too has said why already
                    self._lease.check()
                    self.clear(self._others)
                    self.remove_marker()
        finally:
            self._scratch.close()
            lease, self._lease = self._lease, None
            if lease is not None:
                lease.release()

    def _go_back(self) -> None:
        sizes = {entry.name: entry.size for entry in list_folder(self.shards)}

        def is_there(shard: Shard) -> bool:
            return sizes.get(shard.file) == shard.bytes and shard.file + INDEX_SUFFIX in sizes

        self.journal.go_back(is_there)

    def _note_begun(self) -> None:
        self._is_ours = True

    def _bring(self, names: Collection[str]) -> None:
        for name in names:
            self.check()
            upload(self._scratch.path / name, self.shards / name)
