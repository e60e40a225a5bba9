"""The index of a shard: where each sample lies, how long it is, and its checksum.

With it any sample is one range read away, and is checked before it is used. It is kept as an Arrow IPC file beside the
shard (`shard-000000.tar.idx`), and in memory as plain arrays, which pickle small and are read from many threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from headrace.errors import DamagedError
from headrace.formats.columns import I64, U64
from headrace.formats.fields import Field
from headrace.formats.table import Table, byte_strings

BEHIND_END = "it lies at least in part behind the end of the shard"
PIECE_BYTES = 4 << 20


class Range(NamedTuple):
    """Bytes of a shard."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.offset + self.length


class Layout(NamedTuple):
    """Where the samples of a piece lie, and their fields in them, known before any byte of them is read."""

    offsets: I64
    """Of each sample in the shard."""
    lengths: I64
    checksums: U64
    """xxh3_64 of each sample's bytes."""
    fields: Mapping[str, tuple[I64, I64]]
    """Field -> where its bytes begin in each sample, and how many they are."""


class Opened(ABC):
    """Samples first .. last-1 of a piece, in memory, checked. Safe to share by threads."""

    damage: Mapping[int, str]
    """The samples that differ from their checksum, and the reason; they must not be used."""
    num_bytes: int
    """Memory that is held besides the bytes that were read."""

    @abstractmethod
    def sample(self, i: int) -> dict[str, Any]:
        """Sample i: `__key__` and its fields, as views where the format allows it.

        Nothing is copied or checked here: this is called tens of thousands of times a second. Raises DamagedError for
        a value that was written wrong, such as text that is not UTF-8.
        """

    def table(self, first: int, last: int) -> Table | None:
        """Samples first .. last-1, none of which is damaged, as columns; None where they cannot be had so."""
        return None


class ShardIndex(ABC):
    """What is known of a piece's samples, numbered from 0. One subclass a format. Safe to share by threads.

    A *piece* is a shard, or a part of one that is unpacked as a whole (a row group of Parquet). A piece is either
    *ranged*: any run of its samples is one range read; or it is read and unpacked as a whole.
    """

    format: ClassVar[str]
    is_ranged: bool = True
    shard_bytes: int
    """Length of the shard file."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """How many samples the shard has."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that the index takes, in bytes."""

    @property
    @abstractmethod
    def sample_bytes(self) -> I64:
        """How many bytes of the shard belong to each sample."""

    @abstractmethod
    def key(self, i: int) -> str:
        """The key of sample i."""

    def key_column(self, first: int, last: int) -> list[str] | NDArray[np.void]:
        """The keys of samples first .. last-1, as a Table has them."""
        return list(map(self.key, range(first, last)))

    @abstractmethod
    def extent(self, first: int, last: int) -> tuple[int, int]:
        """(offset, length) of the bytes that hold samples first .. last-1, and what is needed to verify them."""

    def ranges(self, first: int, last: int) -> Sequence[Range]:
        """What is to be read for samples first .. last-1, in storage order: all of the extent, unless the format can
        leave out what lies between."""
        return [Range(*self.extent(first, last))]

    @abstractmethod
    def open(self, first: int, last: int, data: memoryview) -> Opened:
        """Samples first .. last-1 out of `data`, what the shard holds at `ranges(first, last)`, one behind the other.

        Raises DamagedError if none of them can be had, as of a compressed shard that does not unpack.
        """

    @property
    def layout(self) -> Layout | None:
        """Where the fields lie, if all samples have the same ones and each is stored as it is given; else None."""
        return None

    def with_fields(self, names: Collection[str]) -> ShardIndex:
        """This piece for samples of these fields (and their key) only; names that it does not know are passed over.

        The others are read, verified and left out, unless the format can do without reading them.
        """
        return SomeFields(self, names)

    def runs(self) -> Iterator[tuple[int, int]]:
        """The piece cut into runs (first, last) of a few MiB, or of one sample if it is larger; one if it is whole."""
        if not self.is_ranged:
            yield 0, self.num_samples
            return
        first, num_bytes = 0, 0
        for i, length in enumerate(self.sample_bytes.tolist()):
            if num_bytes and num_bytes + length > PIECE_BYTES:
                yield first, i
                first, num_bytes = i, 0
            num_bytes += length
        if first < self.num_samples:
            yield first, self.num_samples

    def forward(self, read: Callable[[int, int], memoryview], size: int) -> Iterator[tuple[int, int, Opened]] | None:
        """All samples in order, (first, last, opened) for each run, out of a shard of `size` bytes of which
        `read(offset, length)` gives some: for what is unpacked as a whole but can be unpacked bit by bit.

        None: there is no other way than to open run by run.
        """
        return None

    def key_hashes(self) -> U64:
        """xxh3_64 of every sample's key."""
        return np.fromiter((key_hash(self.key(i)) for i in range(self.num_samples)), np.uint64, self.num_samples)


class RangedIndex(ShardIndex):
    """A piece whose samples lie as views in the bytes that were read."""

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        return OpenedRange(self, self.extent(first, last)[0], data, self.damage(first, last, data))

    @abstractmethod
    def damage(self, first: int, last: int, data: memoryview) -> dict[int, str]:
        """The samples among first .. last-1 whose bytes differ from their checksum, and the reason.

        `data` is what the shard holds at `extent(first, last)`.
        """

    def table_columns(self, first: int, last: int, data: memoryview, base: int) -> Mapping[str, NDArray[Any]] | None:
        """The fields of samples first .. last-1 as the columns of a Table; None where they cannot be had so."""
        layout = self.layout
        if layout is None or first == last:
            return None
        starts = layout.offsets[first:last] - base
        return {
            name: byte_strings(data, starts + offsets[first:last], lengths[first:last])
            for name, (offsets, lengths) in layout.fields.items()
        }

    @abstractmethod
    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        """Sample i as views into `data`, which holds the shard's bytes from offset `base` on: `__key__` and its fields.

        Nothing is checked here.
        """


class OpenedRange(Opened):
    """A run of samples of a ranged piece."""

    num_bytes = 0

    def __init__(self, index: RangedIndex, base: int, data: memoryview, damage: Mapping[int, str]) -> None:
        """`data` holds the shard's bytes from offset `base` on."""
        self.damage = damage
        self._index, self._base, self._data = index, base, data

    def sample(self, i: int) -> dict[str, Any]:
        return self._index.sample(i, self._data, self._base)

    def table(self, first: int, last: int) -> Table | None:
        columns = self._index.table_columns(first, last, self._data, self._base)
        return None if columns is None else Table(first, self._index.key_column(first, last), columns)


class SomeFields(ShardIndex):
    """A piece of whose samples some fields are wanted: it is read and verified as a whole, and the others left out."""

    def __init__(self, piece: ShardIndex, names: Collection[str]) -> None:
        self.shard_bytes, self.is_ranged = piece.shard_bytes, piece.is_ranged
        self._piece, self._names = piece, frozenset(names) | {"__key__"}

    @property
    def num_samples(self) -> int:
        return self._piece.num_samples

    @property
    def nbytes(self) -> int:
        return self._piece.nbytes

    @property
    def sample_bytes(self) -> I64:
        return self._piece.sample_bytes

    def key(self, i: int) -> str:
        return self._piece.key(i)

    def key_hashes(self) -> U64:
        return self._piece.key_hashes()

    def extent(self, first: int, last: int) -> tuple[int, int]:
        return self._piece.extent(first, last)

    def ranges(self, first: int, last: int) -> Sequence[Range]:
        return self._piece.ranges(first, last)

    @property
    def layout(self) -> Layout | None:
        layout = self._piece.layout
        if layout is None:
            return None
        return layout._replace(fields={name: at for name, at in layout.fields.items() if name in self._names})

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        return _OpenedFields(self._piece.open(first, last, data), self._names)


class _OpenedFields(Opened):
    """Samples without the fields that are not wanted."""

    def __init__(self, opened: Opened, names: Collection[str]) -> None:
        self.damage, self.num_bytes = opened.damage, opened.num_bytes
        self._opened, self._names = opened, names

    def sample(self, i: int) -> dict[str, Any]:
        return {name: value for name, value in self._opened.sample(i).items() if name in self._names}

    def table(self, first: int, last: int) -> Table | None:
        table = self._opened.table(first, last)
        if table is None:
            return None
        return replace(table, columns={name: column for name, column in table.columns.items() if name in self._names})


class StoredIndex(ShardIndex):
    """An index that has a file beside its shard, as opposed to a view made of one."""

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """What the shard's samples have, by field name, `__key__` aside."""

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """What the whole numbers of fields stand for, by field, where the shard says it itself."""
        return {}

    def read_as(self, fields: Mapping[str, Field]) -> Self:
        """Give values as the types of the whole dataset's fields say, where shards may differ. Returns the index.

        For whoever has just read it, before it is shared by threads.
        """
        return self

    @property
    def unpacked_bytes(self) -> int:
        """Memory that the shard takes unpacked, if it has pieces that are read as a whole; else 0."""
        return 0

    @property
    def pieces(self) -> Sequence[ShardIndex]:
        """The parts of the shard that are read on their own, in storage order: one, unless the format says more."""
        return (self,)

    @abstractmethod
    def to_file(self) -> bytes:
        """The content of the index file."""

    def all_damage(self, read: Callable[[int, int], memoryview], size: int) -> Iterator[tuple[int, str]]:
        """Every damaged sample of the shard and the reason, read some MiB at a time.

        `read(offset, length)` gives bytes of the shard file, which has `size` of them.
        """
        before = 0
        for piece in self.pieces:
            for first, last in piece.runs():
                for i, reason in _damage_of(piece, first, last, read, size):
                    yield before + i, reason
            before += piece.num_samples


def _damage_of(
    piece: ShardIndex, first: int, last: int, read: Callable[[int, int], memoryview], size: int
) -> Iterator[tuple[int, str]]:
    """The damaged samples of one run, each looked at by itself where the run reaches behind the end of the file."""
    ranges = piece.ranges(first, last)
    if all(part.end <= size for part in ranges):
        yield from _damage_in(piece, first, last, joined(ranges, read))
    elif not piece.is_ranged or last - first == 1:
        yield from ((i, BEHIND_END) for i in range(first, last))
    else:
        for i in range(first, last):
            yield from _damage_of(piece, i, i + 1, read, size)


def _damage_in(piece: ShardIndex, first: int, last: int, data: memoryview) -> Iterator[tuple[int, str]]:
    try:
        opened = piece.open(first, last, data)
    except DamagedError as err:
        yield from ((i, str(err)) for i in range(first, last))
        return
    for i in range(first, last):
        reason = opened.damage.get(i)
        if reason is None:
            try:
                opened.sample(i)  # what was written wrong has a right checksum, and still cannot be read
            except DamagedError as err:
                reason = str(err)
        if reason is not None:
            yield i, reason


def joined(ranges: Sequence[Range], read: Callable[[int, int], memoryview]) -> memoryview:
    """The bytes at these ranges, one behind the other; `read(offset, length)` gives those of one."""
    if len(ranges) == 1:
        return read(*ranges[0])
    data, at = memoryview(bytearray(sum(part.length for part in ranges))), 0
    for part in ranges:
        data[at : at + part.length] = read(*part)
        at += part.length
    return data


def sample_checksum(data: memoryview) -> int:
    """The checksum that an index keeps of a sample's bytes, where each sample has one."""
    return xxhash.xxh3_64_intdigest(data)


def key_hash(key: str) -> int:
    """The 64-bit hash by which keys are looked up and dealt into splits."""
    return xxhash.xxh3_64_intdigest(key.encode())
