"""Bins of documents for a whole dataset: planned once, shard by shard, and kept beside the manifest.

`headrace.rows-2048.json` says how many bins each shard has and of which dataset they were made; beside each shard's
index lies which documents its bins hold. Where no file may be written they are kept in memory instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import xxhash

from headrace.dataset.shard_files import ShardFiles
from headrace.errors import HeadraceError, ManifestError, StorageError
from headrace.formats import Manifest
from headrace.formats.checking import Checked
from headrace.formats.columns import I64
from headrace.formats.tokens.bins import BinIndex, Layout
from headrace.formats.tokens.index import TokensIndex
from headrace.formats.tokens.planning import GROUP_BINS
from headrace.storage import Place, exists, read_bytes, write_bytes
from headrace.telemetry import progress

if TYPE_CHECKING:
    from headrace.dataset.indexes import Indexes

VERSION = 1


@dataclass(frozen=True, eq=False)
class Binning:
    """How the documents of a dataset of tokens are put together. Small to pickle, but for what is kept in memory."""

    layout: Layout
    capacity: int
    """Tokens of a row, or the budget of a padded batch."""
    counts: I64
    """Bins of each shard."""
    digests: tuple[str, ...]
    """xxh3_128 of each shard's plan, where they lie beside the dataset."""
    kept: tuple[BinIndex, ...] = ()
    """The plans themselves, where they do not."""

    @property
    def name(self) -> str:
        """What the files are called by."""
        return f"{self.layout}-{self.capacity}"

    def group_bytes(self, itemsize: int) -> int:
        """Bytes over which the documents of neighbouring bins are spread."""
        return GROUP_BINS * self.capacity * itemsize


def bin_documents(files: ShardFiles, manifest: Manifest, indexes: Indexes, layout: Layout, capacity: int) -> Binning:
    """The bins of a dataset: those that were planned before, or else planned now and kept. Raises DamagedError."""
    place = files.home / f"headrace.{layout}-{capacity}.json"
    if indexes.scanned is None and (known := _known(place, manifest)) is not None:
        return Binning(layout, capacity, *known)
    plans = _planned(manifest, indexes, layout, capacity)
    counts = np.array([plan.num_samples for plan in plans], np.int64)
    if indexes.scanned is None and (digests := _saved(place, files, manifest, layout, capacity, plans)) is not None:
        return Binning(layout, capacity, counts, digests)
    return Binning(layout, capacity, counts, (), tuple(plans))


def _planned(manifest: Manifest, indexes: Indexes, layout: Layout, capacity: int) -> list[BinIndex]:
    plans = []
    with progress("planning", len(manifest.shards), "shards") as advance:
        for k in range(len(manifest.shards)):
            documents = indexes.read(k)
            assert isinstance(documents, TokensIndex)
            plans.append(BinIndex.plan(documents, layout, capacity, indexes.stem(k)))
            advance(1)
    return plans


def _known(place: Place, manifest: Manifest) -> tuple[I64, tuple[str, ...]] | None:
    """What a file says that was written for this very dataset; None if there is none, or it is another one's."""
    try:
        if not exists(place):
            return None
        value = Checked(orjson.loads(read_bytes(place)), str(place))
        if value["version"].integer() != VERSION or value["fingerprint"].text() != manifest.fingerprint:
            return None
        counts = np.array([count.integer() for count in value["bins"].elements()], np.int64)
        digests = tuple(digest.hex_digest() for digest in value["xxh3_128"].elements())
    except (HeadraceError, orjson.JSONDecodeError, OverflowError):  # it is only a plan: it is made again
        return None
    return (counts, digests) if len(counts) == len(digests) == len(manifest.shards) else None


def _saved(
    place: Place, files: ShardFiles, manifest: Manifest, layout: Layout, capacity: int, plans: Sequence[BinIndex]
) -> tuple[str, ...] | None:
    """Write the plans and what they are made of; their checksums, or None where the dataset's place takes no files."""
    digests = []
    try:
        for name, plan in zip(manifest.shards.file, plans, strict=True):
            content = plan.to_file()
            write_bytes(files.index_place(f"{name}.{layout}-{capacity}"), content)
            digests.append(xxhash.xxh3_128_hexdigest(content))
        said: dict[str, Any] = {"version": VERSION, "fingerprint": manifest.fingerprint}
        said |= {"bins": [plan.num_samples for plan in plans], "xxh3_128": digests}
        write_bytes(place, orjson.dumps(said) + b"\n")
    except StorageError:
        return None
    return tuple(digests)


def read_bins(
    binning: Binning, files: ShardFiles, shard: int, name: str, documents: TokensIndex, stem: str
) -> BinIndex:
    """The bins of one shard. Raises DamagedError if their file is not what it was."""
    if binning.kept:
        return binning.kept[shard]
    file = f"{name}.{binning.name}"
    data = memoryview(files.read_index(file, binning.digests[shard]))
    index = BinIndex.from_file(data, file, documents, binning.layout, binning.capacity, stem)
    if index.num_samples != binning.counts[shard]:
        raise ManifestError(f"the plan {file} has {index.num_samples} bins, not {binning.counts[shard]}: delete it")
    return index
