"""Where a dataset's files lie: its manifest and indexes in one place, its shards in the same or another."""

from __future__ import annotations

import os
from dataclasses import dataclass

from headrace.errors import StorageError
from headrace.formats import INDEX_SUFFIX, MANIFEST_NAME
from headrace.storage import File, Place, list_folder, locate, open_file, storage_refusals


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """Places by name. Holds no open file and no credentials; cheap to pickle."""

    url: str
    """As the user gave it, for messages."""
    home: Place
    """The folder of manifest and indexes."""
    shards: Place
    """The folder of the shards."""

    @property
    def is_remote(self) -> bool:
        """Whether the shards are read over a network."""
        return not self.shards.is_local

    def open(self, name: str, num_bytes: int | None = None) -> File:
        """A shard, open for reading; `num_bytes` is its length, where it is known."""
        return open_file(self.shards / name, size=num_bytes)

    def names(self) -> list[str]:
        """Names of the files in the shards' folder; none where the store cannot list, as over plain http."""
        try:
            return [entry.name for entry in list_folder(self.shards) if not entry.is_folder]
        except StorageError:
            return []

    def index_place(self, name: str) -> Place:
        """The index file of a shard."""
        return self.home / (name + INDEX_SUFFIX)

    @property
    def manifest_place(self) -> Place:
        """The manifest."""
        return self.home / MANIFEST_NAME


def shown(url: str | os.PathLike[str]) -> str:
    """A URL as it may be shown and kept: without the query that may be its signature."""
    text = os.fspath(url)
    return text.partition("?")[0] if text.lower().startswith(("http:", "https:")) else text


def lasting(place: Place) -> Place:
    """The same place, independent of where this process works: a description is used later, by other processes too."""
    if not place.is_local or place.path.is_absolute():
        return place
    with storage_refusals("find", place.path):
        return locate(place.path.absolute())
