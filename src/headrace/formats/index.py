"""The index of a shard: where each sample lies, how long it is, and its checksum.

With it any sample is one range read away, and is checked before it is used. It is kept as an Arrow IPC file beside the
shard (`shard-000000.tar.idx`), and in memory as plain arrays, which pickle small and are read from many threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import xxhash

BEHIND_END = "it lies at least in part behind the end of the shard"
PIECE_BYTES = 4 << 20

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


class ShardIndex(ABC):
    """What is known of one shard's samples, numbered from 0. One subclass a format. Safe to share by threads."""

    format: ClassVar[str]
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

    @abstractmethod
    def extent(self, first: int, last: int) -> tuple[int, int]:
        """(offset, length) of the bytes that hold samples first .. last-1, and what is needed to verify them."""

    @abstractmethod
    def damage(self, first: int, last: int, data: memoryview) -> dict[int, str]:
        """The samples among first .. last-1 whose bytes differ from their checksum, and the reason.

        `data` is what the shard holds at `extent(first, last)`.
        """

    @abstractmethod
    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        """Sample i as views into `data`, which holds the shard's bytes from offset `base` on: `__key__` and its fields.

        Nothing is copied or checked here: this is called tens of thousands of times a second.
        """

    def key_hashes(self) -> U64:
        """xxh3_64 of every sample's key."""
        return np.fromiter((key_hash(self.key(i)) for i in range(self.num_samples)), np.uint64, self.num_samples)


class StoredIndex(ShardIndex):
    """An index that has a file beside its shard, as opposed to a view made of one."""

    @abstractmethod
    def to_file(self) -> bytes:
        """The content of the index file."""

    @abstractmethod
    def all_damage(self, read: Callable[[int, int], memoryview], size: int) -> Iterator[tuple[int, str]]:
        """Every damaged sample of the shard and the reason, read in pieces of a few MiB.

        `read(offset, length)` gives bytes of the shard file, which has `size` of them.
        """


class Strings:
    """A column of strings in two buffers: without an object each, a million of them are cheap to hold and pickle."""

    def __init__(self, starts: I64, text: npt.NDArray[np.uint8]) -> None:
        """`starts` has one more entry than there are strings: where the last one ends."""
        self.starts, self.text = starts, text
        self._starts, self._text = starts.data, text.data

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        """The column of these strings."""
        encoded = [string.encode() for string in strings]
        starts = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=starts[1:])
        return cls(starts, np.frombuffer(b"".join(encoded), np.uint8))

    def __getitem__(self, i: int) -> str:
        return str(self._text[self._starts[i] : self._starts[i + 1]], "utf-8")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return Strings, (self.starts, self.text)

    @property
    def nbytes(self) -> int:
        """Memory of both buffers, in bytes."""
        return self.starts.nbytes + self.text.nbytes


def key_hash(key: str) -> int:
    """The 64-bit hash by which keys are looked up and dealt into splits."""
    return xxhash.xxh3_64_intdigest(key.encode())
