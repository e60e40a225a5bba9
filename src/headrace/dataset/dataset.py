"""An opened dataset: how many samples, what they look like, where each lies, and any of them by number or key.

It is a description: it holds no open file, costs little to pickle, and may be used from threads and fresh processes
alike. Indexes of shards are read when first needed; the most recently used stay, within a bound on their memory.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from headrace.dataset.binning import bin_documents
from headrace.dataset.chosen import chosen_fields
from headrace.dataset.indexes import Indexes
from headrace.dataset.lookup import AllIndexes, Lookup, WindowNames, is_replaced, keys_damage, open_keys
from headrace.dataset.reading import LastWhole, open_run
from headrace.dataset.repeated import repeated_keys
from headrace.dataset.scanning import groups_of, matching
from headrace.dataset.selection import Drawn, Listed, numbers_of, share_of, whole_number
from headrace.dataset.shard_files import ShardFiles
from headrace.dataset.verify import find_damage
from headrace.dataset.view import View, Windows
from headrace.errors import DamagedError, DatasetError, OptionError
from headrace.formats import Field, Manifest, Opened, ShardIndex
from headrace.formats.columns import I64
from headrace.formats.format import MAX_UNPACKED_BYTES
from headrace.formats.index import StoredIndex
from headrace.formats.tokens.bins import Layout
from headrace.formats.tokens.index import FIELD
from headrace.storage import File, Place, quoted
from headrace.storage.cache import cache_options

MAX_ROW_TOKENS = 1 << 24


class Dataset:
    """A dataset made by `headrace.open`. `ds[i]`, `ds[a:b]` and `ds.lookup(key)` give raw samples, verified.

    A raw sample is a dict: `__key__` (str) and its fields, memoryviews for tar, typed values for typed formats.
    """

    def __init__(
        self,
        files: ShardFiles,
        manifest: Manifest,
        max_sample_bytes: int,
        scanned: Sequence[StoredIndex] | None = None,
        view: View | None = None,
    ) -> None:
        """`scanned` are the indexes of a dataset without index files; they are pickled along. `view` says what of the
        dataset is wanted; None: all."""
        self.manifest = manifest
        self._files = files
        self._cache = files.open_cache()
        """Held, for a cache in RAM lives as long as someone holds it."""
        self._max_sample_bytes = max_sample_bytes
        self._view = view or View()
        self._indexes = Indexes(files, manifest, scanned)
        self._last_whole = LastWhole()
        self.pieces = self._view.pieces(manifest)
        self._lookup: Lookup | None = None

    def __len__(self) -> int:
        return int(self.pieces.sample_starts[-1])

    @overload
    def __getitem__(self, i: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, i: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, i: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Sample i (from the end if negative), or the samples of a slice, verified: one range read a shard.

        Raises IndexError past the ends, DamagedError if the bytes are missing or differ from their checksum.
        """
        if isinstance(i, slice):
            return self._slice(range(*i.indices(len(self))))
        number = operator.index(i)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(f"sample {i} of a dataset of {len(self)}")
        piece, at = self.pieces.find(number)
        return self._read(piece, at, at + 1)[0]

    def lookup(self, key: str) -> dict[str, Any]:
        """The sample with this key, read and verified as by `ds[i]`. Raises KeyError if there is none.

        It is found by one small read of `headrace.keys`, the index of keys beside the manifest; without that file the
        first look-up reads all indexes. Of equal keys the first is found.
        """
        for number in self._numbers_of(key):
            piece, i = self.pieces.find(number)
            if self.piece(piece).key(i) == key:
                return self._read(piece, i, i + 1)[0]
        raise KeyError(f"no sample has the key {key!r}")

    def __eq__(self, other: object) -> bool:
        """Whether it is the same data at the same place, and the same fields of it."""
        if not isinstance(other, Dataset):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return self._files, self.fingerprint, self._view.fields

    def __repr__(self) -> str:
        return f"Dataset({self.url!r}, format={self.manifest.format!r}, samples={len(self)}{self._view})"

    @property
    def url(self) -> str:
        """Where the dataset lies."""
        return self._files.url

    @property
    def home(self) -> Place:
        """The folder of manifest and indexes."""
        return self._files.home

    @property
    def is_remote(self) -> bool:
        """Whether shards are read over a network, so that many requests in flight pay."""
        return self._files.is_remote

    @property
    def schema(self) -> Mapping[str, Field]:
        """What samples have, by field name, `__key__` aside."""
        return self._view.schema(self.manifest)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that two datasets share only if their samples and their order are the same, whichever of their
        fields were asked for."""
        return self._view.fingerprint(self.manifest)

    def windows(self, length: int, stride: int | None = None) -> Dataset:
        """This dataset of tokens with windows as samples: `length` tokens from every `stride`-th of a shard.

        `stride` is `length` if not given. Windows run over the ends of documents, not of shards; tokens behind the last
        whole window of a shard are not used. A sample has the key `shard-000000:4096` (shard, first token) and the
        field `tokens`. To train on the next token ask for `length=context + 1, stride=context`.
        """
        length = whole_number("length", length)
        stride = length if stride is None else whole_number("stride", stride)
        if self.manifest.format != "tokens" or self._view.has_own_samples:
            raise OptionError(f"windows are cut from a dataset of whole tokens: {self!r} is not one")
        if length < 1 or stride < 1:
            raise OptionError(f"length and stride must be at least 1: got {length} and {stride}")
        itemsize = np.dtype(self.manifest.fields[FIELD].dtype).itemsize
        self._check_size(length * itemsize, f"a window of {length} tokens")
        return self._seen(replace(self._view, windows=Windows(length, stride)))

    def binned(self, layout: Layout, capacity: int) -> Dataset:
        """This dataset of tokens with documents put together as samples: "rows" of `capacity` tokens, or "padded".

        See `Stream.pack_tokens` and `Stream.batch_tokens`. What goes together is planned from the lengths in the
        index once, and kept beside the manifest where that takes files. Raises OptionError for what has no documents,
        DamagedError.
        """
        if self.manifest.format != "tokens" or self._view.has_own_samples:
            raise OptionError(
                f"documents are put together by their lengths, which datasets of whole tokens have: {self!r} is not "
                'one; pack it into tokens first (format="tokens")'
            )
        capacity = whole_number("the number of tokens to put together", capacity)
        if not 1 <= capacity <= MAX_ROW_TOKENS:
            raise OptionError(f"documents are put together into 1 to {MAX_ROW_TOKENS:,} tokens: got {capacity:,}")
        self._check_size(capacity * np.dtype(self.manifest.fields[FIELD].dtype).itemsize, f"a row of {capacity} tokens")
        binning = bin_documents(self._files, self.manifest, self._indexes, layout, capacity)
        if not binning.counts.sum():
            raise OptionError(f"{self.url} has no tokens to put together")
        return self._seen(replace(self._view, binning=binning))

    @property
    def least_block_bytes(self) -> int:
        """What a block of a stream has to hold at least, so that nothing is read many times over; 0: anything."""
        return self._view.least_block_bytes(self.manifest, self.pieces)

    def with_fields(self, names: Iterable[str]) -> Dataset:
        """This dataset with samples of `__key__` and these fields only; see `headrace.open(fields=)`.

        Raises OptionError for a name that is not in the schema.
        """
        return self._seen(replace(self._view, fields=chosen_fields(names, self.schema, self.url)))

    def with_cache(self, cache: str | os.PathLike[str], cache_size: int | str | None = None) -> Dataset:
        """This dataset, read through a cache; see `headrace.open(cache=, cache_size=)`. Raises OptionError."""
        files = replace(self._files, cache=cache_options(cache, cache_size))
        return Dataset(files, self.manifest, self._max_sample_bytes, self._indexes.scanned, self._view)

    @property
    def is_cached(self) -> bool:
        """Whether what is read over a network is kept on this machine."""
        return self._files.cache is not None

    def select(self, samples: Iterable[int] | npt.NDArray[Any] | Callable[[dict[str, Any]], Any]) -> Dataset:
        """Some of this dataset's samples as a dataset: `ds.select(numbers)[k]` is `ds[numbers[k]]`.

        `samples` are whole numbers (from the end if negative), a mask of one boolean a sample, or a function(sample)
        that is true for those to keep. Every sample is then read once, in storage order; a function that looks at few
        fields is quicker on `headrace.open(fields=...)`, whose numbers hold for all fields: `selected_numbers`.
        Numbers in storage order are read forward; others cost a read each time they jump back.

        Raises OptionError for numbers that name no sample, or where none is left.
        """
        numbers = matching(self, samples) if callable(samples) else numbers_of(samples, len(self))
        if not len(numbers):
            raise OptionError(f"a selection keeps at least one sample: none of the {len(self):,} of {self.url} is left")
        return self._seen(self._view.narrowed(Listed.of(numbers, self.pieces.sample_starts)))

    def sample(self, fraction: float, seed: int = 0) -> Dataset:
        """A random share of this dataset as a dataset: round(fraction x samples) of them, the same ones for one seed.

        They are drawn evenly over the pieces of the dataset and keep their order; memory does not grow with their
        number. `fraction` is above 0 and at most 1, `seed` a whole number. Raises OptionError for others, and for a
        dataset without samples.
        """
        seed = whole_number("seed", seed)
        if not len(self):
            raise OptionError(f"a sample is drawn from samples: {self.url} has none")
        num_samples = share_of(fraction, len(self))
        drawn = Drawn.from_pieces(num_samples, self.pieces.sample_starts, seed)
        return self._seen(self._view.narrowed(drawn))

    def group_by(self, field: str) -> dict[Any, Dataset]:
        """The samples of each value of a field as a dataset of their own, in the order of the values.

        The field of every sample is read once, in storage order: numbers, text, or bytes that hold a number or text
        (such as the `cls` of a tar). Raises OptionError for a field that the dataset does not have.
        """
        groups = groups_of(self.with_fields([field]), field)
        starts = self.pieces.sample_starts
        listed = {value: Listed.of(numbers, starts) for value, numbers in groups.items()}
        return {value: self._seen(self._view.narrowed(one)) for value, one in listed.items()}

    @property
    def selected_numbers(self) -> I64:
        """The numbers that this dataset's samples have in the one that was opened, or in its windows."""
        selection = self._view.selection
        if selection is None:
            return np.arange(len(self))
        starts = self._view.all_pieces(self.manifest).sample_starts
        return np.concatenate([starts[base] + selection.numbers(k) for k, base in enumerate(selection.base.tolist())])

    def piece(self, piece: int) -> ShardIndex:
        """The index of a piece, verified against the manifest. Safe to call from several threads."""
        return self._view.piece(self._indexes, *self.pieces.place(piece), piece)

    def stored_index(self, shard: int) -> StoredIndex:
        """The index of a shard as it lies on the disk, without windows, read anew and verified."""
        return self._indexes.read(shard)

    def open_shard(self, shard: int) -> File:
        """A shard, open for reading. Raises DamagedError if it is missing."""
        if self._cache is None:  # as in a process that this dataset was sent to
            self._cache = self._files.open_cache()
        shards = self.manifest.shards
        return self._files.open(shards.file[shard], int(shards.bytes[shard]), shards.xxh3_128[shard])

    def list_files(self) -> list[str]:
        """Names of the files beside the shards; none where the store cannot list."""
        return self._files.names()

    def keys_damage(self) -> Iterable[str]:
        """What is wrong with the index of keys; without one, as of a dataset that is not indexed, with the keys."""
        if self._indexes.scanned is None:
            return keys_damage(self._files.home, self.manifest)
        return repeated_keys(self)

    def shard_name(self, shard: int) -> str:
        """The name of a shard within the dataset."""
        return self.manifest.shards.file[shard]

    def verify(self, progress: Callable[..., None] | None = None) -> list[str]:
        """Check every byte and checksum of the dataset where it lies; returns everything that is wrong, one line each.

        An empty list means that all is well; all fields and samples are checked, whichever were asked for.
        Nothing is raised for damage. `progress(n)` is called when n more samples are done.
        """
        files = replace(self._files, cache=None)
        whole = Dataset(files, self.manifest, self._max_sample_bytes, self._indexes.scanned)
        return find_damage(whole, progress)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lookup": None, "_cache": None}

    def _seen(self, view: View) -> Dataset:
        """This dataset, seen so."""
        return Dataset(self._files, self.manifest, self._max_sample_bytes, self._indexes.scanned, view)

    def _slice(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        if len(numbers) > 1 and numbers[1] - numbers[0] != 1:
            return [self[number] for number in numbers]
        samples: list[dict[str, Any]] = []
        while len(samples) < len(numbers):
            piece, first = self.pieces.find(numbers[len(samples)])
            count = min(len(numbers) - len(samples), int(self.pieces.samples[piece]) - first)
            samples += self._read(piece, first, first + count)
        return samples

    def _read(self, piece: int, first: int, last: int) -> list[dict[str, Any]]:
        index, shard = self.piece(piece), self.pieces.place(piece)[0]
        sizes = index.sample_bytes[first:last].tolist()
        for i, num_bytes in enumerate(sizes, first):
            self._check_size(num_bytes, f"sample {quoted(index.key(i))} of {self.shard_name(shard)}")
        opened = self._opened(piece, shard, index, first, last)
        for i in range(first, last):
            if (reason := opened.damage.get(i)) is not None:
                place = quoted(self._files.shards / self.shard_name(shard))
                raise DamagedError(
                    f"sample {quoted(index.key(i))} of {place} is damaged: {reason}; restore the shard, or make the "
                    "dataset again"
                )
        return [opened.sample(i) for i in range(first, last)]

    def _opened(self, piece: int, shard: int, index: ShardIndex, first: int, last: int) -> Opened:
        if index.is_ranged:
            with self.open_shard(shard) as file:
                return open_run(file, index, first, last)
        opened = self._last_whole.get(piece)
        if opened is None:
            self._check_unpacked(piece, shard)
            with self.open_shard(shard) as file:
                opened = open_run(file, index, 0, index.num_samples)
            self._last_whole.put(piece, opened)
        return opened

    def _check_unpacked(self, piece: int, shard: int) -> None:
        # A manifest may come from anywhere, and a small file may unpack to any size.
        num_bytes = int(self.pieces.bytes[piece])
        if num_bytes > MAX_UNPACKED_BYTES:
            raise DatasetError(
                f"{self.shard_name(shard)} is unpacked as a whole, to {num_bytes:,} bytes, and read like this are at "
                f"most {MAX_UNPACKED_BYTES:,}: repack the dataset (headrace pack)"
            )

    def _check_size(self, num_bytes: int, what: str) -> None:
        if num_bytes > self._max_sample_bytes:
            raise DatasetError(
                f"{what} has {num_bytes:,} bytes, more than max_sample_bytes={self._max_sample_bytes:,}; open the "
                "dataset with a larger limit" + (", or as windows" if self.manifest.format == "tokens" else "")
            )

    def _numbers_of(self, key: str) -> Iterable[int]:
        """Numbers of the samples that may have this key."""
        if self._lookup is None:
            self._lookup = self._open_lookup()
        try:
            return self._lookup.find(key)
        except DamagedError:
            if not is_replaced(self._files.home, self.manifest):
                raise
            self._lookup = self._read_all_keys()  # samples were appended since this dataset was opened
            return self._lookup.find(key)

    def _open_lookup(self) -> Lookup:
        if self._view.selection is not None or self._view.binning is not None:
            return self._read_all_keys()
        if self._view.windows is not None:
            stems = (self._indexes.stem(k) for k in range(len(self.manifest.shards)))
            return WindowNames(stems, self.pieces.sample_starts, self._view.windows.stride)
        keys = open_keys(self._files.home, self.manifest) if self._indexes.scanned is None else None
        return keys or self._read_all_keys()

    def _read_all_keys(self) -> Lookup:
        return AllIndexes(self.piece(k).key_hashes() for k in range(len(self.pieces)))
