"""The index of a token shard: its documents, and a checksum of every block of bytes.

The checksums are of blocks, not of documents, so that a range of tokens is checked without reading all of the document
that it lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from headrace.formats.arrow import Column, IndexFile, index_to_bytes
from headrace.formats.columns import I64, U64, Strings
from headrace.formats.fields import Field
from headrace.formats.index import PIECE_BYTES, RangedIndex, StoredIndex

FIELD = "tokens"
DTYPES = ("uint16", "uint32")

_COLUMNS = (("key", "text"), ("offset", "int64"), ("length", "int64"))
FINE_BYTES, COARSE_BYTES = 4 << 10, 64 << 10
_MAX_FINE_SHARD_BYTES = 16 << 20


def checked_bytes(shard_bytes: int) -> int:
    """How many bytes each checksum of a new index covers; the last one covers what is left.

    A small dataset is read window by window, to be well mixed, and a window should not cost many times its size.
    """
    return FINE_BYTES if shard_bytes <= _MAX_FINE_SHARD_BYTES else COARSE_BYTES


class Blocks:
    """The checksums of a shard's blocks of bytes."""

    def __init__(self, shard_bytes: int, covered: int, checksums: U64) -> None:
        """Each of the checksums covers `covered` bytes, the last one what is left."""
        self.shard_bytes, self.covered, self.checksums = shard_bytes, covered, checksums

    @classmethod
    def of(cls, file: IndexFile, shard_bytes: int) -> Blocks:
        """Those of an index file. Raises ManifestError."""
        text = file.fact("checked_bytes", str(COARSE_BYTES))
        if text not in (str(FINE_BYTES), str(COARSE_BYTES)):
            raise file.error(f"has checksums of {text[:20]!r} bytes each, not of {FINE_BYTES} or {COARSE_BYTES}")
        try:
            checksums = np.frombuffer(bytes.fromhex(file.fact("checksums")), "<u8").astype(np.uint64)
        except ValueError as err:
            raise file.error(f"has malformed checksums ({err})") from err
        expected = -(-shard_bytes // int(text))
        if len(checksums) != expected:
            raise file.error(f"has {len(checksums)} checksums, and the shard {expected} blocks")
        return cls(shard_bytes, int(text), checksums)

    def facts(self) -> dict[str, str]:
        """What an index file says of them."""
        return {"checked_bytes": str(self.covered), "checksums": self.checksums.astype("<u8").tobytes().hex()}

    def extent(self, start: int, end: int) -> tuple[int, int]:
        """The whole blocks that hold the bytes start .. end-1, as (offset, length)."""
        first = start // self.covered * self.covered
        last = min(-(-end // self.covered) * self.covered, self.shard_bytes)
        return first, max(0, last - first)

    def damaged(self, base: int, data: memoryview) -> list[tuple[int, int]]:
        """The byte ranges (start, end) of the blocks in `data`, found at offset `base`, whose checksums differ."""
        starts, covered, checksum = range(0, len(data), self.covered), self.covered, xxhash.xxh3_64_intdigest
        found = np.fromiter((checksum(data[at : at + covered]) for at in starts), np.uint64, len(starts))
        first = base // covered
        differing = np.flatnonzero(found != self.checksums[first : first + len(found)]).tolist()
        return [(base + k * covered, base + min((k + 1) * covered, len(data))) for k in differing]


class TokensIndex(RangedIndex, StoredIndex):
    """The index of a token shard; its samples are documents."""

    format: ClassVar[str] = "tokens"

    def __init__(
        self, dtype: str, header_bytes: int, keys: Strings, offsets: I64, lengths: I64, blocks: Blocks
    ) -> None:
        """Offsets and lengths of documents count tokens, the first of which lies behind a header of so many bytes."""
        self.shard_bytes = blocks.shard_bytes
        self.header_bytes = header_bytes
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._dtype_name = dtype
        self._keys, self._offsets, self._lengths, self._blocks = keys, offsets, lengths, blocks
        self._offset, self._length = offsets.data, lengths.data
        self._itemsize = self.dtype.itemsize
        self._sample_bytes = lengths * self._itemsize

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = (self._keys, self._offsets, self._lengths, self._blocks)
        return TokensIndex, (self._dtype_name, self.header_bytes, *arrays)

    @property
    def num_samples(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + 3 * self._offsets.nbytes + self._blocks.checksums.nbytes

    @property
    def sample_bytes(self) -> I64:
        return self._sample_bytes

    def key(self, i: int) -> str:
        return self._keys[i]

    def key_hashes(self) -> U64:
        return self._keys.hashes()

    def extent(self, first: int, last: int) -> tuple[int, int]:
        if first >= last:
            return 0, 0
        return self._blocks.extent(self._start(first), self._start(last - 1) + self._length[last - 1] * self._itemsize)

    def damage(self, first: int, last: int, data: memoryview) -> dict[int, str]:
        base = self.extent(first, last)[0]
        starts, ends = self._ranges(first, last)
        return touched(self._blocks.damaged(base, data), starts, ends, first)

    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        tokens = np.frombuffer(data, self.dtype, self._length[i], self._start(i) - base)
        return {"__key__": self._keys[i], FIELD: tokens}

    @property
    def fields(self) -> Mapping[str, Field]:
        return {FIELD: Field("array", self.dtype.name)}

    @property
    def token_counts(self) -> I64:
        """Tokens of each document."""
        return self._lengths

    @property
    def starts(self) -> I64:
        """Where each document begins in the shard, in bytes."""
        return self.header_bytes + self._offsets * self._itemsize

    @property
    def blocks(self) -> Blocks:
        """The checksums."""
        return self._blocks

    def windows(self, stem: str, length: int, stride: int) -> WindowIndex:
        """This shard as windows of `length` tokens, one every `stride`; `stem` begins their keys."""
        return WindowIndex(self._blocks, self._dtype_name, self.header_bytes, stem, length, stride)

    def to_file(self) -> bytes:
        columns: dict[str, Column] = {"key": self._keys, "offset": self._offsets, "length": self._lengths}
        facts = {"dtype": self._dtype_name, "header_bytes": str(self.header_bytes), **self._blocks.facts()}
        return index_to_bytes(self.format, columns, facts)

    def all_damage(self, read: Callable[[int, int], memoryview], size: int) -> Iterator[tuple[int, str]]:
        damaged = [(size, self.shard_bytes)] if size < self.shard_bytes else []
        for base in range(0, min(size, self.shard_bytes), PIECE_BYTES):
            damaged += self._blocks.damaged(base, read(base, min(PIECE_BYTES, size - base, self.shard_bytes - base)))
        yield from sorted(touched(damaged, *self._ranges(0, self.num_samples), 0).items())

    @classmethod
    def from_file(cls, data: memoryview, name: str, shard_bytes: int) -> TokensIndex:
        """The index that a file holds. Raises ManifestError if it is malformed or reaches outside the shard."""
        file = IndexFile(data, name, cls.format, _COLUMNS)
        dtype, header = file.fact("dtype"), file.fact("header_bytes", "0")
        if dtype not in DTYPES:
            raise file.error(f"has tokens of type {dtype!r}, not {' or '.join(DTYPES)}")
        if not (header.isascii() and header.isdigit() and len(header) < 19 and int(header) <= shard_bytes):
            raise file.error(f"has a header of {header[:20]!r} bytes, and the shard {shard_bytes:,} bytes")
        offsets, lengths = file.numbers("offset"), file.numbers("length")
        num_tokens = (shard_bytes - int(header)) // np.dtype(dtype).itemsize
        inside = (offsets >= 0) & (lengths >= 0) & (lengths <= num_tokens) & (offsets <= num_tokens - lengths)
        if not np.all(inside) or not np.array_equal(offsets[1:], (offsets + lengths)[:-1]):
            raise file.error(f"speaks of tokens outside its shard of {shard_bytes:,} bytes")
        return cls(dtype, int(header), file.strings("key"), offsets, lengths, Blocks.of(file, shard_bytes))

    def _ranges(self, first: int, last: int) -> tuple[I64, I64]:
        starts = self.header_bytes + self._offsets[first:last] * self._itemsize
        return starts, starts + self._sample_bytes[first:last]

    def _start(self, i: int) -> int:
        return self.header_bytes + self._offset[i] * self._itemsize


class WindowIndex(RangedIndex):
    """A token shard whose samples are windows: `length` tokens from every `stride`-th token on, none past the end."""

    format: ClassVar[str] = "tokens"

    def __init__(self, blocks: Blocks, dtype: str, header_bytes: int, stem: str, length: int, stride: int) -> None:
        self.shard_bytes = blocks.shard_bytes
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._dtype_name, self._header_bytes = dtype, header_bytes
        self._blocks, self._stem, self._window, self._stride = blocks, stem, length, stride
        self._num_samples = num_windows((self.shard_bytes - header_bytes) // self.dtype.itemsize, length, stride)

    def __reduce__(self) -> tuple[Any, ...]:
        cut = (self._header_bytes, self._stem, self._window, self._stride)
        return WindowIndex, (self._blocks, self._dtype_name, *cut)

    @property
    def num_samples(self) -> int:
        return self._num_samples

    @property
    def nbytes(self) -> int:
        return int(self._blocks.checksums.nbytes)

    @property
    def sample_bytes(self) -> I64:
        return np.broadcast_to(np.int64(self._window * self.dtype.itemsize), self._num_samples)

    def key(self, i: int) -> str:
        return f"{self._stem}:{i * self._stride}"

    def extent(self, first: int, last: int) -> tuple[int, int]:
        if first >= last:
            return 0, 0
        return self._blocks.extent(self._start(first), self._start(last - 1) + self._window * self.dtype.itemsize)

    def damage(self, first: int, last: int, data: memoryview) -> dict[int, str]:
        base = self.extent(first, last)[0]
        starts = self._header_bytes + np.arange(first, last, dtype=np.int64) * (self._stride * self.dtype.itemsize)
        return touched(self._blocks.damaged(base, data), starts, starts + self._window * self.dtype.itemsize, first)

    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        return {"__key__": self.key(i), FIELD: np.frombuffer(data, self.dtype, self._window, self._start(i) - base)}

    def key_column(self, first: int, last: int) -> list[str]:
        # As characters they would be of several lengths in most batches, which costs more for as few as windows are.
        stem, stride = self._stem, self._stride
        return [f"{stem}:{at}" for at in range(first * stride, last * stride, stride)]

    def table_columns(self, first: int, last: int, data: memoryview, base: int) -> Mapping[str, NDArray[Any]]:
        steps = self._stride * self.dtype.itemsize, self.dtype.itemsize
        return {FIELD: np.ndarray((last - first, self._window), self.dtype, data, self._start(first) - base, steps)}

    def _start(self, i: int) -> int:
        return self._header_bytes + i * self._stride * self.dtype.itemsize


def num_windows(num_tokens: int, length: int, stride: int) -> int:
    """How many windows of `length` tokens, one every `stride`, lie within `num_tokens`."""
    return max(0, (num_tokens - length) // stride + 1)


def count_windows(num_tokens: I64, length: int, stride: int) -> I64:
    """`num_windows` of many shards."""
    return np.maximum(0, (num_tokens - length) // stride + 1)


def touched(damaged: list[tuple[int, int]], starts: I64, ends: I64, first: int) -> dict[int, str]:
    """Which of the byte ranges from `starts` to `ends`, numbered from `first` on, lie in damaged blocks."""
    found: dict[int, str] = {}
    for start, end in damaged:
        for i in np.flatnonzero((starts < end) & (ends > start)):
            found.setdefault(first + int(i), f"the checksum of bytes {start:,} to {end:,} of the shard differs")
    return found
