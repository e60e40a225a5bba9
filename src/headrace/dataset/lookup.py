"""From a key to the numbers of the samples that may have it: by the index of keys, else by all indexes of shards."""

from __future__ import annotations

import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError
from headrace.formats import MANIFEST_NAME, Manifest, key_hash
from headrace.formats.columns import I64, U64
from headrace.formats.keys import KEYS_NAME, KeyTable, keys_source, write_keys
from headrace.storage import Place, exists, make_folder, open_file, read_bytes, remove_file, upload
from headrace.storage.writing import TEMPORARY_SUFFIX


class Lookup(ABC):
    """Finds samples by key. Safe to share by threads."""

    @abstractmethod
    def find(self, key: str) -> Iterable[int]:
        """Numbers of the samples that may have this key, in storage order; their keys have to be compared."""


class KeysFile(Lookup):
    """By the index of keys that lies beside the manifest. Raises DamagedError where it differs from its checksums."""

    def __init__(self, place: Place) -> None:
        """Reads the index's table. Raises ManifestError or DamagedError if it is broken."""
        self._place = place
        with open_file(place) as file:
            self._size, self._table = file.size, KeyTable.read(file)

    def belongs_to(self, manifest: Manifest) -> bool:
        """Whether it was made of this very dataset."""
        return self._table.source == keys_source(manifest) and len(self._table) == manifest.samples

    def find(self, key: str) -> Iterable[int]:
        with open_file(self._place, size=self._size) as file:
            return self._table.find(file, key_hash(key))

    def damage(self) -> Iterator[str]:
        """What is wrong with it, reading all of it."""
        with open_file(self._place, size=self._size) as file:
            yield from self._table.damage(file)


class AllIndexes(Lookup):
    """By the keys of all shards' indexes, which are read when it is made."""

    def __init__(self, hashes: Iterable[U64]) -> None:
        parts = list(hashes)
        joined = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
        self._numbers = np.argsort(joined, kind="stable")
        self._hashes = joined[self._numbers]

    def find(self, key: str) -> Iterable[int]:
        wanted = np.uint64(key_hash(key))
        first, last = (np.searchsorted(self._hashes, wanted, side) for side in ("left", "right"))
        return [int(number) for number in self._numbers[first:last]]


class WindowNames(Lookup):
    """By arithmetic: the key of a window is its shard's name, without ending, and its first token."""

    def __init__(self, stems: Iterable[str], sample_starts: I64, stride: int) -> None:
        self._shards = {stem: k for k, stem in enumerate(stems)}
        self._starts, self._stride = sample_starts, stride

    def find(self, key: str) -> Iterable[int]:
        stem, _, token = key.rpartition(":")
        if stem not in self._shards or not (token.isascii() and token.isdigit()):
            return []
        k = self._shards[stem]
        number, rest = divmod(int(token), self._stride)
        number += int(self._starts[k])
        return [] if rest or number >= self._starts[k + 1] else [number]


def open_keys(home: Place, manifest: Manifest) -> KeysFile | None:
    """The index of keys beside the manifest; None if there is none, or, with a warning, if it belongs to other data.

    Raises ManifestError or DamagedError for one that is broken.
    """
    if not exists(home / KEYS_NAME):
        return None
    keys = KeysFile(home / KEYS_NAME)
    if keys.belongs_to(manifest):
        return keys
    if not _belongs_to_later(keys, home):
        warnings.warn(f"{_stale(home)}; until then every index is read to find a key", stacklevel=4)
    return None


def _belongs_to_later(keys: KeysFile, home: Place) -> bool:
    """Whether samples were appended since the dataset was opened, and the index is that of its present manifest."""
    place = home / MANIFEST_NAME
    return exists(place) and keys.belongs_to(Manifest.parse(read_bytes(place), str(place)))


def is_replaced(home: Place, manifest: Manifest) -> bool:
    """Whether the index of keys is by now that of another revision of the dataset, or gone."""
    return not exists(home / KEYS_NAME) or not KeysFile(home / KEYS_NAME).belongs_to(manifest)


def save_keys(
    home: Place, manifest: Manifest, hashes: Iterable[U64], check: Callable[[U64], None] | None = None
) -> None:
    """Write the index of keys into the folder that the manifest goes to, whole or not at all.

    `hashes` are those of all samples' keys in storage order, in chunks: `key_hashes()` of each index. `check`, memory
    and errors as for `write_keys`.
    """
    place = home / KEYS_NAME
    with _local_file(place) as path:
        write_keys(path, keys_source(manifest), hashes, check)
        upload(path, place)


def keys_damage(home: Place, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the index of keys, if there is one."""
    try:
        if exists(home / KEYS_NAME):
            keys = KeysFile(home / KEYS_NAME)
            yield from keys.damage() if keys.belongs_to(manifest) else [_stale(home)]
    except HeadraceError as err:
        yield str(err)


def _stale(home: Place) -> str:
    return f"{home / KEYS_NAME} belongs to other data than the manifest beside it: delete it"


@contextmanager
def _local_file(place: Place) -> Iterator[Path]:
    """Where to write what goes to the place once it is whole; nothing is left there afterwards."""
    if not place.is_local:
        with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
            yield Path(folder) / place.name
        return
    make_folder(place.path.parent)
    path = place.path.with_name(place.name + TEMPORARY_SUFFIX)
    try:
        yield path
    finally:
        remove_file(path)
