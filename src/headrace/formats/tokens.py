"""Token shards: flat arrays of little-endian uint16 or uint32, one document behind the other.

The file is what numpy's `memmap` or `fromfile` reads, with nothing added. Its index lists the documents and a checksum
of every 64 KiB, so that a range of tokens is checked without reading all of the document it lies in. A sample is a
document, or with windows a run of tokens of one length wherever documents begin and end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xxhash

from headrace.errors import DamagedError, OptionError, SourceError
from headrace.formats.arrow import Column, IndexFile, index_to_bytes
from headrace.formats.columns import I64, U64, Strings
from headrace.formats.index import PIECE_BYTES, RangedIndex, StoredIndex
from headrace.formats.fields import Field
from headrace.formats.format import Format, Found, Listing, ScanOptions
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.shards import Shard
from headrace.storage import File, quoted

FIELD = "tokens"
DTYPES = ("uint16", "uint32")
CHECKED_BYTES = 64 << 10
"""Each checksum covers this many bytes of the shard; the last one covers what is left."""

_COLUMNS = (("key", "text"), ("offset", "int64"), ("length", "int64"))
_NAMED_DTYPE = re.compile(r"\.(uint16|uint32)\.bin$")


class _Blocks:
    """The checksums of a shard's blocks of 64 KiB."""

    def __init__(self, shard_bytes: int, checksums: U64) -> None:
        self.shard_bytes, self.checksums = shard_bytes, checksums

    def extent(self, start: int, end: int) -> tuple[int, int]:
        """The whole blocks that hold the bytes start .. end-1, as (offset, length)."""
        first = start // CHECKED_BYTES * CHECKED_BYTES
        last = min(-(-end // CHECKED_BYTES) * CHECKED_BYTES, self.shard_bytes)
        return first, max(0, last - first)

    def damaged(self, base: int, data: memoryview) -> list[tuple[int, int]]:
        """The byte ranges (start, end) of the blocks in `data`, found at offset `base`, whose checksums differ."""
        found = []
        for at in range(0, len(data), CHECKED_BYTES):
            block = data[at : at + CHECKED_BYTES]
            if xxhash.xxh3_64_intdigest(block) != int(self.checksums[(base + at) // CHECKED_BYTES]):
                found.append((base + at, base + at + len(block)))
        return found


class TokensIndex(RangedIndex, StoredIndex):
    """The index of a token shard; its samples are documents."""

    format: ClassVar[str] = "tokens"

    def __init__(self, shard_bytes: int, dtype: str, keys: Strings, offsets: I64, lengths: I64, checksums: U64) -> None:
        """Offsets and lengths of documents count tokens; checksums are of the shard's blocks of 64 KiB."""
        self.shard_bytes = shard_bytes
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._dtype_name = dtype
        self._keys, self._offsets, self._lengths = keys, offsets, lengths
        self._blocks = _Blocks(shard_bytes, checksums)
        self._offset, self._length = offsets.data, lengths.data

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = (self._offsets, self._lengths, self._blocks.checksums)
        return TokensIndex, (self.shard_bytes, self._dtype_name, self._keys, *arrays)

    @property
    def num_samples(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._offsets.nbytes + self._lengths.nbytes + self._blocks.checksums.nbytes

    @property
    def sample_bytes(self) -> I64:
        return self._lengths * self.dtype.itemsize

    def key(self, i: int) -> str:
        return self._keys[i]

    def extent(self, first: int, last: int) -> tuple[int, int]:
        return self._blocks.extent(*self._range(first, last))

    def damage(self, first: int, last: int, data: memoryview) -> dict[int, str]:
        base = self.extent(first, last)[0]
        starts = self._offsets[first:last] * self.dtype.itemsize
        ends = starts + self.sample_bytes[first:last]
        return _touched(self._blocks.damaged(base, data), starts, ends, first)

    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        at = self._offset[i] * self.dtype.itemsize - base
        return {"__key__": self._keys[i], FIELD: np.frombuffer(data, self.dtype, self._length[i], at)}

    @property
    def fields(self) -> Mapping[str, Field]:
        return {FIELD: Field("array", self.dtype.name)}

    def windows(self, stem: str, length: int, stride: int) -> WindowIndex:
        """This shard as windows of `length` tokens, one every `stride`; `stem` begins their keys."""
        return WindowIndex(self._blocks, self._dtype_name, stem, length, stride)

    def to_file(self) -> bytes:
        columns: dict[str, Column] = {"key": self._keys, "offset": self._offsets, "length": self._lengths}
        checksums = self._blocks.checksums.astype("<u8").tobytes().hex()
        return index_to_bytes(self.format, columns, {"dtype": self._dtype_name, "checksums": checksums})

    def all_damage(self, read: Callable[[int, int], memoryview], size: int) -> Iterator[tuple[int, str]]:
        starts = self._offsets * self.dtype.itemsize
        ends = starts + self.sample_bytes
        damaged = [(size, self.shard_bytes)] if size < self.shard_bytes else []
        for base in range(0, min(size, self.shard_bytes), PIECE_BYTES):
            damaged += self._blocks.damaged(base, read(base, min(PIECE_BYTES, size - base, self.shard_bytes - base)))
        yield from sorted(_touched(damaged, starts, ends, 0).items())

    @classmethod
    def from_file(cls, data: memoryview, name: str, shard_bytes: int) -> TokensIndex:
        """The index that a file holds. Raises ManifestError if it is malformed or reaches outside the shard."""
        file = IndexFile(data, name, cls.format, _COLUMNS)
        dtype = file.fact("dtype")
        if dtype not in DTYPES:
            raise file.error(f"has tokens of type {dtype!r}, not {' or '.join(DTYPES)}")
        offsets, lengths = file.numbers("offset"), file.numbers("length")
        num_tokens = shard_bytes // np.dtype(dtype).itemsize
        inside = (offsets >= 0) & (lengths >= 0) & (lengths <= num_tokens) & (offsets <= num_tokens - lengths)
        if not np.all(inside) or not np.array_equal(offsets[1:], (offsets + lengths)[:-1]):
            raise file.error(f"speaks of tokens outside its shard of {shard_bytes:,} bytes")
        return cls(shard_bytes, dtype, file.strings("key"), offsets, lengths, _checksums(file, shard_bytes))

    def _range(self, first: int, last: int) -> tuple[int, int]:
        if first >= last:
            return 0, 0
        end = self._offset[last - 1] + self._length[last - 1]
        return self._offset[first] * self.dtype.itemsize, end * self.dtype.itemsize


class WindowIndex(RangedIndex):
    """A token shard whose samples are windows: `length` tokens from every `stride`-th token on, none past the end."""

    format: ClassVar[str] = "tokens"

    def __init__(self, blocks: _Blocks, dtype: str, stem: str, length: int, stride: int) -> None:
        self.shard_bytes = blocks.shard_bytes
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._dtype_name = dtype
        self._blocks, self._stem, self._window, self._stride = blocks, stem, length, stride
        self._num_samples = num_windows(blocks.shard_bytes // self.dtype.itemsize, length, stride)

    def __reduce__(self) -> tuple[Any, ...]:
        return WindowIndex, (self._blocks, self._dtype_name, self._stem, self._window, self._stride)

    @property
    def num_samples(self) -> int:
        return self._num_samples

    @property
    def nbytes(self) -> int:
        return int(self._blocks.checksums.nbytes)

    @property
    def sample_bytes(self) -> I64:
        return np.full(self._num_samples, self._window * self.dtype.itemsize, np.int64)

    def key(self, i: int) -> str:
        return f"{self._stem}:{i * self._stride}"

    def extent(self, first: int, last: int) -> tuple[int, int]:
        if first >= last:
            return 0, 0
        itemsize = self.dtype.itemsize
        end = (last - 1) * self._stride + self._window
        return self._blocks.extent(first * self._stride * itemsize, end * itemsize)

    def damage(self, first: int, last: int, data: memoryview) -> dict[int, str]:
        base = self.extent(first, last)[0]
        starts = np.arange(first, last, dtype=np.int64) * (self._stride * self.dtype.itemsize)
        return _touched(self._blocks.damaged(base, data), starts, starts + self._window * self.dtype.itemsize, first)

    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        at = i * self._stride * self.dtype.itemsize - base
        return {"__key__": self.key(i), FIELD: np.frombuffer(data, self.dtype, self._window, at)}


class TokensWriter(ShardWriter):
    """Writes a token shard. The first document of the dataset decides the type of its tokens."""

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        super().__init__(path, fields)
        self._dtype = fields[FIELD].dtype if FIELD in fields else None
        self._keys: list[str] = []
        self._ends: list[int] = [0]
        self._checksums: list[int] = []
        self._block = bytearray()

    def _add(self, sample: Encoded) -> None:
        data = self._converted(sample)
        self._keys.append(sample.key)
        self._write(data)
        self._ends.append(self.num_bytes // np.dtype(self._dtype).itemsize)
        self._block += data
        while len(self._block) >= CHECKED_BYTES:
            self._end_block(CHECKED_BYTES)

    def _added_bytes(self, sample: Encoded) -> int:
        have, want = np.dtype(sample.fields[FIELD].dtype), np.dtype(self._dtype or sample.fields[FIELD].dtype)
        return len(sample.blob) // have.itemsize * want.itemsize

    def _index(self) -> TokensIndex:
        if self._block:
            self._end_block(len(self._block))
        ends = np.array(self._ends, np.int64)
        return TokensIndex(
            self.num_bytes,
            self._dtype or DTYPES[0],
            Strings.of(self._keys),
            ends[:-1].copy(),
            np.diff(ends),
            np.array(self._checksums, np.uint64),
        )

    def _end_block(self, length: int) -> None:
        self._checksums.append(xxhash.xxh3_64_intdigest(self._block[:length]))
        del self._block[:length]

    def _converted(self, sample: Encoded) -> bytes:
        dtype = sample.fields[FIELD].dtype or DTYPES[0]
        self._dtype = self._dtype or dtype
        if dtype == self._dtype:
            return sample.blob
        tokens = np.frombuffer(sample.blob, np.dtype(dtype).newbyteorder("<"))
        if self._dtype == "uint16" and tokens.size and int(tokens.max()) > np.iinfo(np.uint16).max:
            raise SourceError(
                f"sample {quoted(sample.key)} has the token {int(tokens.max())}, but the samples before it were "
                "uint16; give every sample's tokens as uint32"
            )
        return tokens.astype(np.dtype(self._dtype).newbyteorder("<")).tobytes()


def encode_tokens(sample: Mapping[str, Any]) -> Encoded:
    """A sample as a run of tokens: uint16 if its array's type holds no more, else uint32.

    Raises SourceError unless the sample has the field `tokens` alone, a flat array or list of whole numbers in range.
    """
    key = sample["__key__"]
    names = [name for name in sample if name != "__key__"]
    if names != [FIELD]:
        raise SourceError(
            f"sample {quoted(key)} has the fields {names}; the format tokens holds the field {FIELD!r} alone: "
            "make it in the transform, an array of whole numbers"
        )
    if isinstance(sample[FIELD], str | bytes | bytearray | memoryview):
        raise SourceError(
            f"sample {quoted(key)}: tokens are {type(sample[FIELD]).__name__}, not an array of whole numbers; "
            "for bytes as tokens use numpy.frombuffer(data, numpy.uint8)"
        )
    try:
        tokens = np.asarray(sample[FIELD])
    except ValueError as err:  # lists of unequal length
        raise SourceError(f"sample {quoted(key)}: tokens must be a flat array of whole numbers ({err})") from err
    if tokens.size == 0 and not isinstance(sample[FIELD], np.ndarray):
        tokens = tokens.astype(np.uint32)  # an empty list has no type of its own
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise SourceError(
            f"sample {quoted(key)}: tokens must be a flat array of whole numbers, got {tokens.dtype} of shape "
            f"{tokens.shape}"
        )
    dtype = "uint16" if np.can_cast(tokens.dtype, np.uint16) else "uint32"
    most = np.iinfo(dtype).max
    if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) > most):
        raise SourceError(
            f"sample {quoted(key)}: tokens must be from 0 to {most}, got {tokens.min()} to {tokens.max()}"
        )
    blob = tokens.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    return Encoded(key, blob, {FIELD: Field("array", dtype)})


def find_tokens(listing: Listing, options: ScanOptions) -> Found | None:
    """Files named like `tokens.uint16.bin`; with a dtype given every `.bin` file. The content says nothing."""
    files = [name for name in listing.names if name.endswith(".bin") and (options.dtype or dtype_in_name(name))]
    return Found(files) if files else None


def scan_tokens(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[TokensIndex, Shard]:
    """The index of a bare token file, one document named like it, and its row.

    The dtype is uint16 or uint32; where it is not given it is taken from a name like `tokens.uint16.bin`.
    """
    dtype = options.dtype or dtype_in_name(hints["file"])
    if dtype not in DTYPES:
        raise OptionError(
            f"the type of the tokens in {file.name} must be known, uint16 or uint32, got {dtype!r}: rename the file "
            "like tokens.uint16.bin, or index it with dtype='uint16' (headrace index --dtype uint16)"
        )
    digest, checksums, size = xxhash.xxh3_128(), [], 0
    with file.stream() as stream:
        while block := stream.read(CHECKED_BYTES):
            digest.update(block)
            checksums.append(xxhash.xxh3_64_intdigest(block))
            size += len(block)
    num_tokens, rest = divmod(size, np.dtype(dtype).itemsize)
    if rest:
        raise DamagedError(f"{file.name} has {size:,} bytes, which is no whole number of {dtype} tokens; restore it")
    stem = _NAMED_DTYPE.sub("", hints["file"]).removesuffix(".bin")
    document = np.array([0], np.int64), np.array([num_tokens], np.int64)
    index = TokensIndex(size, dtype, Strings.of([stem]), *document, np.array(checksums, np.uint64))
    return index, Shard("", 1, size, digest.hexdigest(), "")


def dtype_in_name(name: str) -> str | None:
    """The type that a token file's name gives, such as uint16 in `tokens.uint16.bin`."""
    found = _NAMED_DTYPE.search(name)
    return found[1] if found else None


def num_windows(num_tokens: int, length: int, stride: int) -> int:
    """How many windows of `length` tokens, one every `stride`, lie within `num_tokens`."""
    return 0 if num_tokens < length else (num_tokens - length) // stride + 1


def _touched(damaged: list[tuple[int, int]], starts: I64, ends: I64, first: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for start, end in damaged:
        for i in np.flatnonzero((starts < end) & (ends > start)):
            found.setdefault(first + int(i), f"the checksum of bytes {start:,} to {end:,} of the shard differs")
    return found


def _checksums(file: IndexFile, shard_bytes: int) -> U64:
    try:
        checksums = np.frombuffer(bytes.fromhex(file.fact("checksums")), "<u8").astype(np.uint64)
    except ValueError as err:
        raise file.error(f"has malformed checksums ({err})") from err
    expected = -(-shard_bytes // CHECKED_BYTES)
    if len(checksums) != expected:
        raise file.error(f"has {len(checksums)} checksums, and the shard {expected} blocks")
    return checksums


TOKENS = Format("tokens", ".bin", find_tokens, scan_tokens, TokensIndex.from_file, encode_tokens, TokensWriter)
