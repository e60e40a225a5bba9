"""Indexes of shards, read when first needed; the most recently used stay, within a bound on their memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from headrace.dataset.binning import Binning, read_bins
from headrace.dataset.shard_files import ShardFiles
from headrace.errors import DamagedError
from headrace.formats import Manifest, ShardIndex, get_format
from headrace.formats.index import StoredIndex
from headrace.formats.tokens.bins import BinIndex
from headrace.formats.tokens.index import FIELD, TokensIndex

INDEX_MEMORY_BYTES = 128 << 20
"""Indexes kept in memory by one opened dataset; a JPEG's row takes about 100 bytes, so this is a million samples."""


_MAX_WINDOW_INDEXES = 4096  # each is small: checksums are shared with the stored index


class Indexes:
    """The indexes of one dataset. Thread-safe; pickled without those in memory, but for scanned ones."""

    def __init__(self, files: ShardFiles, manifest: Manifest, scanned: Sequence[StoredIndex] | None) -> None:
        self.scanned = scanned
        """Those of a dataset without index files."""
        self._files, self._manifest = files, manifest
        self._start_unshared()

    def get(self, k: int) -> StoredIndex:
        """The index of shard k, verified against the manifest. Of threads that want it at once one reads it."""
        if self.scanned is not None:
            return self.scanned[k]
        with self._lock:
            if k in self._kept:
                self._kept.move_to_end(k)
                return self._kept[k]
            coming = self._coming.get(k)
            if coming is None:
                ours = self._coming[k] = Future()
        return self._read_for_all(k, ours) if coming is None else coming.result()

    def windows(self, k: int, length: int, stride: int) -> ShardIndex:
        """Shard k of tokens, cut into windows."""
        with self._lock:
            cut = self._windows.get(k)
        if cut is None:
            stored = self.get(k)
            assert isinstance(stored, TokensIndex)
            cut = stored.windows(self.stem(k), length, stride)
            with self._lock:
                self._windows[k] = cut
                if len(self._windows) > _MAX_WINDOW_INDEXES:
                    self._windows.popitem(last=False)
        return cut

    def bins(self, k: int, binning: Binning) -> ShardIndex:
        """Shard k of tokens, its documents put together."""
        with self._lock:
            made = self._bins.get(k)
        if made is None:
            documents = self.get(k)
            assert isinstance(documents, TokensIndex)
            made = read_bins(binning, self._files, k, self._manifest.shards.file[k], documents, self.stem(k))
            with self._lock:
                self._bins[k] = made
                while len(self._bins) > 1 and sum(one.nbytes for one in self._bins.values()) > INDEX_MEMORY_BYTES:
                    self._bins.popitem(last=False)
        return made

    def stem(self, k: int) -> str:
        """What the keys of windows of shard k begin with."""
        return self._manifest.shards.file[k].removesuffix(get_format("tokens").suffix)

    def read(self, k: int) -> StoredIndex:
        """The index of shard k, read anew and verified. Raises DamagedError."""
        if self.scanned is not None:
            return self.scanned[k]
        shards = self._manifest.shards
        place = self._files.index_place(shards.file[k])
        data = self._files.read_index(shards.file[k], shards.index_xxh3_128[k])
        format_ = get_format(self._manifest.format)
        index = format_.read_index(memoryview(data), place.text, int(shards.bytes[k])).read_as(self._manifest.fields)
        self._check(index, k, str(place))
        return index

    def _read_for_all(self, k: int, coming: Future[StoredIndex]) -> StoredIndex:
        try:
            index = self.read(k)
            self._keep(k, index)
            coming.set_result(index)
        except BaseException as err:  # whatever it was, nobody may wait for this index for ever
            coming.set_exception(err)
            raise
        finally:
            with self._lock:
                del self._coming[k]
        return index

    def _keep(self, k: int, index: StoredIndex) -> None:
        with self._lock:
            self._kept[k] = index
            self._num_bytes += index.nbytes
            while self._num_bytes > INDEX_MEMORY_BYTES and len(self._kept) > 1:
                self._num_bytes -= self._kept.popitem(last=False)[1].nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"scanned": self.scanned, "_files": self._files, "_manifest": self._manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_unshared()

    def _start_unshared(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, StoredIndex] = OrderedDict()
        self._coming: dict[int, Future[StoredIndex]] = {}
        """Those that are being read; none of them is kept yet."""
        self._windows: OrderedDict[int, ShardIndex] = OrderedDict()
        self._bins: OrderedDict[int, BinIndex] = OrderedDict()
        self._num_bytes = 0

    def _check(self, index: StoredIndex, k: int, name: str) -> None:
        shards = self._manifest.shards
        if index.num_samples != shards.samples[k]:
            raise DamagedError(
                f"the index {name} has {index.num_samples} samples, the manifest says {shards.samples[k]}; restore the "
                "one that is wrong"
            )
        stated = shards.piece_samples[shards.piece_starts[k] : shards.piece_starts[k + 1]].tolist()
        if [piece.num_samples for piece in index.pieces] != stated:
            raise DamagedError(
                f"the index {name} has other pieces than the manifest says; restore the one that is wrong"
            )
        if index.unpacked_bytes != shards.unpacked_bytes[k]:  # by which memory is planned
            raise DamagedError(
                f"the index {name} is of a shard that unpacks to {index.unpacked_bytes:,} bytes, the manifest says "
                f"{shards.unpacked_bytes[k]:,}; restore the one that is wrong"
            )
        if isinstance(index, TokensIndex):
            self._check_tokens(index, k, name)

    def _check_tokens(self, index: TokensIndex, k: int, name: str) -> None:
        if index.dtype.name != self._manifest.fields[FIELD].dtype:
            raise DamagedError(
                f"the index {name} is of {index.dtype.name} tokens, the manifest says "
                f"{self._manifest.fields[FIELD].dtype}; restore the one that is wrong"
            )
        if index.header_bytes != self._manifest.shards.header_bytes[k]:
            raise DamagedError(
                f"the index {name} is of a shard with a header of {index.header_bytes:,} bytes, the manifest says "
                f"{self._manifest.shards.header_bytes[k]:,}; restore the one that is wrong"
            )
