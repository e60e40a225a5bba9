"""What a format is: how a dataset of it is recognised, read, indexed and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.formats.fields import Field
from headrace.formats.index import StoredIndex
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.shards import Shard
from headrace.storage import File, Place

MAX_UNPACKED_BYTES = 4 << 30
"""What is compressed as a whole may unpack to: the bound on what a small file can ask for."""


class Listing(ABC):
    """The files of a folder that may be a dataset, for formats to recognise themselves by content."""

    names: Sequence[str]
    """Of the files directly in the folder, sorted; hidden files and index files of ours aside."""

    @abstractmethod
    def head(self, name: str, num_bytes: int = 512) -> bytes:
        """A file's first bytes: fewer where it is shorter. What is read once is kept."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A small file's content. `name` may lie in a folder below: `part/index.json`. FileNotFoundError if it is not
        there."""

    @abstractmethod
    def size(self, name: str) -> int:
        """A file's length in bytes. FileNotFoundError if it is not there."""


@dataclass(frozen=True, slots=True)
class Found:
    """The shards of an ordinary dataset."""

    files: Sequence[str]
    """Names within the dataset's folder, in storage order; with `/` where they lie in folders below."""
    hints: Sequence[Mapping[str, Any]] = ()
    """For each shard what `scan` has to know of it that the shard itself does not say; or none at all."""


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What a person may say of ordinary shards."""

    dtype: str | None = None
    """The type of bare token files."""
    max_sample_bytes: int = 256 << 20
    """What a single sample may take, unpacked: the bound on what a wrong length can ask for."""
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES
    """What a shard that is compressed as a whole may unpack to."""


@dataclass(frozen=True, slots=True)
class Format:
    """One on-disk format, reader and writer together."""

    name: str
    suffix: str
    """Of the names of shards that are written."""
    find: Callable[[Listing, ScanOptions], Found | None]
    """The shards among a folder's files; None if it holds none of this format. Goes by content."""
    scan: Callable[[File, Mapping[str, Any], ScanOptions], tuple[StoredIndex, Shard]]
    """The index of an ordinary shard, made in one pass over it, and its row: its `file` and the checksum of its index
    are filled in by the caller. The hints are those found, and `file`, the shard's name in the dataset. Raises
    DamagedError for what is cut off or broken."""
    read_index: Callable[[memoryview, str, int], StoredIndex]
    """The index in an index file's content, the file's name and its shard's length."""
    encode: Callable[[Mapping[str, Any]], Encoded] | None = None
    """A sample as it will lie in a shard; may be called from several threads. None: the format is only read."""
    writer: Callable[[Path, Mapping[str, Field]], ShardWriter] | None = None
    finish: Callable[[Place, Sequence[Shard]], Mapping[str, bytes]] | None = None
    """The files that the format keeps beside its shards for its own readers (MDS: `index.json`), by name: made when all
    shards lie in that place, and written before the manifest."""
    beside: Sequence[str] = ()
    """The names of these files."""
    join: Callable[[Field, Field], Field] | None = None
    """What holds for a field that is the one in some shards and the other in others, where they may differ: every
    shard's index is told by `read_as`. None: shards of one dataset have one type."""
    shards_share_keys: bool = False
    """Whether a key may be in several shards of an ordinary dataset: others number the samples of each tar from 0."""
