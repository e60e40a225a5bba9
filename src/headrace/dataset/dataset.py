"""An opened dataset: how many samples, what they look like, where each lies, and any of them by number or key.

It is a description: it holds no open file, costs little to pickle, and may be used from threads and fresh processes
alike. Indexes of shards are read when first needed; the most recently used stay, within a bound on their memory.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from headrace.dataset.verify import find_damage
from headrace.errors import DamagedError, DatasetError, OptionError
from headrace.formats import INDEX_SUFFIX, Field, Manifest, ShardIndex, get_format, key_hash
from headrace.formats.index import I64, StoredIndex
from headrace.formats.tokens import FIELD, TokensIndex, num_windows
from headrace.storage import LocalFile, quoted, storage_refusals

INDEX_MEMORY_BYTES = 128 << 20
"""Indexes kept in memory by one opened dataset; a JPEG's row takes about 100 bytes, so this is a million samples."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Samples cut out of token shards: `length` tokens from every `stride`-th on."""

    length: int
    stride: int


class Dataset:
    """A dataset made by `headrace.open`. `ds[i]` and `ds.lookup(key)` give raw samples, verified.

    A raw sample is a dict: `__key__` (str) and its fields, memoryviews for tar, arrays for tokens.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        max_sample_bytes: int,
        scanned: tuple[StoredIndex, ...] | None = None,
        windows: Windows | None = None,
    ) -> None:
        """`scanned` are the indexes of a dataset without index files; they are pickled along."""
        self.manifest = manifest
        self._url = folder
        # A description that is used later, and by other processes, must not depend on where this one then works.
        self._folder = _absolute(folder)
        self._max_sample_bytes = max_sample_bytes
        self._scanned = scanned
        self._windows = windows
        self.num_bytes_per_shard: I64 = manifest.shards.bytes
        self.num_samples_per_shard: I64 = self._count_samples()
        self._starts: I64 = np.concatenate(([0], np.cumsum(self.num_samples_per_shard)))
        self._start_unshared()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Sample i (from the end if negative): one range read, verified.

        Raises IndexError past the ends, DamagedError if the bytes are missing or differ from their checksum.
        """
        number = i + len(self) if i < 0 else i
        if not 0 <= number < len(self):
            raise IndexError(f"sample {i} of a dataset of {len(self)}")
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._read(shard, number - int(self._starts[shard]))

    def lookup(self, key: str) -> dict[str, Any]:
        """The sample with this key, read and verified as by `ds[i]`. Raises KeyError if there is none.

        The first look-up reads all indexes. Of equal keys in several shards the first is found.
        """
        hashes, numbers = self._hashes()
        wanted = np.uint64(key_hash(key))
        for at in range(int(np.searchsorted(hashes, wanted)), len(hashes)):
            if hashes[at] != wanted:
                break
            shard = int(np.searchsorted(self._starts, numbers[at], side="right")) - 1
            i = int(numbers[at] - self._starts[shard])
            if self.shard(shard).key(i) == key:
                return self._read(shard, i)
        raise KeyError(f"no sample has the key {key!r}")

    def __eq__(self, other: object) -> bool:
        """Whether it is the same data at the same place."""
        if not isinstance(other, Dataset):
            return NotImplemented
        return (self._folder, self.fingerprint) == (other._folder, other.fingerprint)

    def __hash__(self) -> int:
        return hash((self._folder, self.fingerprint))

    def __repr__(self) -> str:
        cut = f", windows={self._windows.length}/{self._windows.stride}" if self._windows else ""
        return f"Dataset({self.url!r}, format={self.manifest.format!r}, samples={len(self)}{cut})"

    @property
    def url(self) -> str:
        """Where the dataset lies."""
        return str(self._url)

    @property
    def schema(self) -> Mapping[str, Field]:
        """What samples have, by field name, `__key__` aside."""
        if self._windows is None:
            return self.manifest.fields
        tokens = replace(self.manifest.fields[FIELD], shape=(self._windows.length,))
        return {FIELD: tokens}

    @property
    def fingerprint(self) -> str:
        """32 hex digits that two datasets share only if their samples and their order are the same."""
        if self._windows is None:
            return self.manifest.fingerprint
        cut = f"{self.manifest.fingerprint} windows {self._windows.length} {self._windows.stride}"
        return xxhash.xxh3_128_hexdigest(cut.encode())

    def windows(self, length: int, stride: int | None = None) -> Dataset:
        """This dataset of tokens with windows as samples: `length` tokens from every `stride`-th of a shard.

        `stride` is `length` if not given. Windows run over the ends of documents, not of shards; tokens behind the last
        whole window of a shard are not used. A sample has the key `shard-000000:4096` (shard, first token) and the
        field `tokens`. To train on the next token ask for `length=context + 1, stride=context`.
        """
        stride = length if stride is None else stride
        if self.manifest.format != "tokens" or self._windows is not None:
            raise OptionError(f"windows are cut from a dataset of whole tokens: {self!r} is not one")
        if length < 1 or stride < 1:
            raise OptionError(f"length and stride must be at least 1: got {length} and {stride}")
        itemsize = np.dtype(self.manifest.fields[FIELD].dtype).itemsize
        self._check_size(length * itemsize, f"a window of {length} tokens")
        return Dataset(self._url, self.manifest, self._max_sample_bytes, self._scanned, Windows(length, stride))

    def shard(self, k: int) -> ShardIndex:
        """The index of shard k, verified against the manifest. Safe to call from several threads."""
        with self._lock:
            if k in self._indexes:
                self._indexes.move_to_end(k)
                return self._indexes[k]
        index = self._load_index(k)
        with self._lock:
            if k not in self._indexes:
                self._indexes[k] = index
                self._index_bytes += index.nbytes
            while self._index_bytes > INDEX_MEMORY_BYTES and len(self._indexes) > 1:
                self._index_bytes -= self._indexes.popitem(last=False)[1].nbytes
        return index

    def shard_path(self, k: int) -> str:
        """The file of shard k."""
        return str(self._folder / self.manifest.shards.file[k])

    def shard_name(self, k: int) -> str:
        """The name of shard k within the dataset."""
        return self.manifest.shards.file[k]

    def verify(self, progress: Callable[..., None] | None = None) -> list[str]:
        """Check every byte and checksum of the dataset; returns everything that is wrong, one line each.

        An empty list means that all is well. Nothing is raised for damage. `progress(n)` is called when n more samples
        are done.
        """
        return find_damage(self, progress)

    def __getstate__(self) -> dict[str, Any]:
        dropped = ("_lock", "_indexes", "_index_bytes", "_lookup")
        return {name: value for name, value in self.__dict__.items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_unshared()

    def _start_unshared(self) -> None:
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._index_bytes = 0
        self._lookup: tuple[np.ndarray[Any, np.dtype[np.uint64]], I64] | None = None

    def _count_samples(self) -> I64:
        if self._windows is None:
            return self.manifest.shards.samples
        tokens = self.num_bytes_per_shard // np.dtype(self.manifest.fields[FIELD].dtype).itemsize
        counts = [num_windows(int(n), self._windows.length, self._windows.stride) for n in tokens]
        return np.array(counts, np.int64)

    def _read(self, shard: int, i: int) -> dict[str, Any]:
        index = self.shard(shard)
        self._check_size(int(index.sample_bytes[i]), f"sample {quoted(index.key(i))} of {self.shard_name(shard)}")
        base, length = index.extent(i, i + 1)
        with LocalFile(self.shard_path(shard)) as file:
            data = file.read(base, length)
        reason = index.damage(i, i + 1, data).get(i)
        if reason is not None:
            raise DamagedError(
                f"sample {quoted(index.key(i))} of {quoted(self.shard_path(shard))} is damaged: {reason}; restore the "
                "shard, or make the dataset again"
            )
        return index.sample(i, data, base)

    def _check_size(self, num_bytes: int, what: str) -> None:
        if num_bytes > self._max_sample_bytes:
            raise DatasetError(
                f"{what} has {num_bytes:,} bytes, more than max_sample_bytes={self._max_sample_bytes:,}; open the "
                "dataset with a larger limit" + ("" if self.manifest.format == "tar" else ", or as windows")
            )

    def _load_index(self, k: int) -> ShardIndex:
        stored = self.stored_index(k)
        if self._windows is None:
            return stored
        assert isinstance(stored, TokensIndex)
        stem = self.shard_name(k).removesuffix(get_format(self.manifest.format).suffix)
        return stored.windows(stem, self._windows.length, self._windows.stride)

    def stored_index(self, k: int) -> StoredIndex:
        """The index of shard k as it lies on the disk, without windows, read anew and verified."""
        if self._scanned is not None:
            return self._scanned[k]
        shards = self.manifest.shards
        name = self.shard_path(k) + INDEX_SUFFIX
        with LocalFile(name) as file:
            data = file.read(0, file.size)
        digest = xxhash.xxh3_128_hexdigest(data)
        if digest != shards.index_xxh3_128[k]:
            raise DamagedError(
                f"the index {quoted(name)} is damaged: its checksum is {digest}, not {shards.index_xxh3_128[k]}; "
                "restore it, or delete headrace.json and index the folder again (headrace index)"
            )
        index = get_format(self.manifest.format).read_index(data, name, int(shards.bytes[k]))
        if index.num_samples != shards.samples[k]:
            raise DamagedError(
                f"the index {quoted(name)} has {index.num_samples} samples, the manifest says {shards.samples[k]}; "
                "restore the one that is wrong"
            )
        if isinstance(index, TokensIndex) and index.dtype.name != self.manifest.fields[FIELD].dtype:
            raise DamagedError(
                f"the index {quoted(name)} is of {index.dtype.name} tokens, the manifest says "
                f"{self.manifest.fields[FIELD].dtype}; restore the one that is wrong"
            )
        return index

    def _hashes(self) -> tuple[np.ndarray[Any, np.dtype[np.uint64]], I64]:
        if self._lookup is None:
            hashes = [self.shard(k).key_hashes() for k in range(len(self.manifest.shards))]
            joined = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
            order = np.argsort(joined, kind="stable")
            self._lookup = joined[order], order
        return self._lookup


def _absolute(folder: Path) -> Path:
    if folder.is_absolute():
        return folder
    with storage_refusals("find", folder):
        return folder.absolute()
