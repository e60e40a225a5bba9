"""Where a dataset's files lie: its manifest and indexes in one place, its shards in the same or another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import xxhash

from headrace.errors import DamagedError, StorageError
from headrace.formats import INDEX_SUFFIX, MANIFEST_NAME
from headrace.storage import File, Place, list_folder, locate, open_file, read_bytes, storage_refusals
from headrace.storage.cache import Cache, CacheOptions, cached, cached_bytes, open_cache


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

    cache: CacheOptions | None = None
    """Where what is read over a network is kept."""
    identities: Mapping[str, str] = field(default_factory=dict, compare=False)
    """What the cache knows shards by that were scanned through it, where it is not their checksum."""

    def open(self, name: str, num_bytes: int, identity: str) -> File:
        """A shard, open for reading: its length, and a checksum of its content, or what else names it."""
        place = self.shards / name
        if self.cache is None or place.is_local:
            return open_file(place, size=num_bytes)
        identity = self.identities.get(name, identity)
        return cached(lambda: open_file(place, size=num_bytes), self.cache, identity, num_bytes, place=place)

    def open_cache(self) -> Cache | None:
        """The cache, if there is one and something to keep in it. Raises StorageError if it cannot be used."""
        is_all_local = self.shards.is_local and self.home.is_local
        return None if self.cache is None or is_all_local else open_cache(self.cache)

    def read_index(self, name: str, digest: str) -> bytes:
        """The content of a shard's index file. Raises DamagedError if its xxh3_128 is not `digest`."""
        place = self.index_place(name)
        if self.cache is None or place.is_local:
            return _checked(place, digest)
        return cached_bytes(lambda: _checked(place, digest), self.cache, digest, place=place)

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


def _checked(place: Place, digest: str) -> bytes:
    data = read_bytes(place)
    if not place.is_local and xxhash.xxh3_128_hexdigest(data) != digest:
        data = read_bytes(place)  # the network may have garbled it: once more
    found = xxhash.xxh3_128_hexdigest(data)
    if found != digest:
        raise DamagedError(
            f"the index {place} is damaged: its checksum is {found}, not {digest}; restore it, or delete headrace.json "
            "and index the folder again (headrace index)"
        )
    return data


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
