"""How an opened dataset is looked at: which of its samples, cut how, with which fields. A view reads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from headrace.dataset.binning import Binning
from headrace.dataset.indexes import Indexes
from headrace.dataset.pieces import Pieces
from headrace.dataset.selection import Narrowed, Selection
from headrace.dataset.some_samples import SomeSamples
from headrace.formats import Field, Manifest, ShardIndex
from headrace.formats.columns import I64
from headrace.formats.tokens.bins import bin_fields
from headrace.formats.tokens.index import FIELD, checked_bytes, count_windows
from headrace.order import default_block_bytes

LEAST_BLOCKS = 256
"""A dataset of bins is shuffled in so many blocks at least."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Samples cut out of token shards: `length` tokens from every `stride`-th on."""

    length: int
    stride: int


@dataclass(frozen=True, slots=True)
class View:
    """What of a dataset is looked at. Small to pickle."""

    windows: Windows | None = None
    binning: Binning | None = None
    """How documents of tokens are put together; with windows there is none."""
    fields: tuple[str, ...] | None = None
    """Those that samples have beside their key; None: all."""
    selection: Selection | None = None
    """Of the samples, or windows; None: all."""

    @property
    def has_own_samples(self) -> bool:
        """Whether samples are other ones than those of the shards."""
        return not (self.windows is None and self.binning is None and self.selection is None)

    def narrowed(self, selection: Selection) -> View:
        """These of the samples only."""
        known = self.selection
        return replace(self, selection=selection if known is None else Narrowed(known, selection))

    def pieces(self, manifest: Manifest) -> Pieces:
        """The pieces that the samples lie in."""
        pieces = self.all_pieces(manifest)
        return pieces if self.selection is None else pieces.selected(self.selection)

    def all_pieces(self, manifest: Manifest) -> Pieces:
        """The same before some of the samples are selected."""
        cut, binning = self.windows, self.binning
        if binning is not None:
            return Pieces.of(manifest.shards, lambda num_bytes: binning.counts)
        if cut is None:
            return Pieces.of(manifest.shards)
        itemsize = _itemsize(manifest)

        def count(num_bytes: I64) -> I64:
            return count_windows(num_bytes // itemsize, cut.length, cut.stride)

        return Pieces.of(manifest.shards, count)

    def piece(self, indexes: Indexes, shard: int, number: int, piece: int) -> ShardIndex:
        """A piece of the view: the shard's piece of this number, seen so."""
        if self.windows is not None:
            index = indexes.windows(shard, self.windows.length, self.windows.stride)
        elif self.binning is not None:
            index = indexes.bins(shard, self.binning)
        else:
            index = indexes.get(shard).pieces[number]
        index = index if self.fields is None else index.with_fields(self.fields)
        return index if self.selection is None else SomeSamples(index, self.selection.numbers(piece))

    def least_block_bytes(self, manifest: Manifest, pieces: Pieces) -> int:
        """What a block of a stream has to hold at least, so that nothing is read many times over."""
        if self.binning is not None:
            # Bins of one group are made of the same bytes.
            together = self.binning.group_bytes(_itemsize(manifest))
        elif self.windows is not None:
            # What a checksum covers is read whole.
            together = checked_bytes(int(manifest.shards.bytes.max(initial=0)))
        else:
            return pieces.largest_whole_bytes
        # They are read together, unless the dataset is so small that this would leave it few blocks to shuffle.
        num_bytes = int(pieces.bytes.sum())
        return max(default_block_bytes(num_bytes), min(together, num_bytes // LEAST_BLOCKS))

    def schema(self, manifest: Manifest) -> Mapping[str, Field]:
        """What samples have, by field name, `__key__` aside."""
        fields = manifest.fields
        if self.windows is not None:
            fields = {FIELD: replace(fields[FIELD], shape=(self.windows.length,))}
        if self.binning is not None:
            fields = bin_fields(self.binning.layout, str(fields[FIELD].dtype), self.binning.capacity)
        return fields if self.fields is None else {name: fields[name] for name in self.fields}

    def fingerprint(self, manifest: Manifest) -> str:
        """32 hex digits that only the same samples in the same order share, whichever of their fields are wanted."""
        if not self.has_own_samples:
            return manifest.fingerprint
        parts = [manifest.fingerprint]
        if self.windows is not None:
            parts.append(f"windows {self.windows.length} {self.windows.stride}")
        if self.binning is not None:
            parts.append(self.binning.name)
        if self.selection is not None:
            parts.append(f"selection {self.selection.digest()}")
        return xxhash.xxh3_128_hexdigest(" ".join(parts).encode())

    def __str__(self) -> str:
        cut = f", windows={self.windows.length}/{self.windows.stride}" if self.windows else ""
        cut += f", {self.binning.name}" if self.binning else ""
        some = ", selected" if self.selection is not None else ""
        return cut + some + (f", fields={[*self.fields]}" if self.fields is not None else "")


def _itemsize(manifest: Manifest) -> int:
    """Bytes of a token."""
    return int(np.dtype(manifest.fields[FIELD].dtype).itemsize)
