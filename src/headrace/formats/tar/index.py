"""The index of a tar shard: where each sample lies, and its fields within it.

Of a compressed tar it says the same of what the tar unpacks to: such a shard is read and unpacked as a whole.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import orjson
import xxhash
from numpy.typing import NDArray

from headrace.errors import DamagedError
from headrace.formats.arrow import Column, IndexFile, Lists, index_to_bytes
from headrace.formats.columns import I64, U64, Strings
from headrace.formats.fields import Field
from headrace.formats.index import Layout, Opened, OpenedRange, StoredIndex
from headrace.formats.spans import SpansIndex
from headrace.formats.unpacking import CODECS, UnpackError, unpacked

_COLUMNS = (
    ("key", "text"),
    ("offset", "int64"),
    ("length", "int64"),
    ("checksum", "uint64"),
    ("member_field", "int64s"),
    ("member_offset", "int64s"),
    ("member_length", "int64s"),
)
_SKIPPED_BYTES = 1 << 20
REPACK = "unpack the tar, which can then be read in parts, or make smaller ones"


class TarRows:
    """The index of a shard, as it grows: a few dozen bytes a sample besides its key."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._offsets, self._lengths, self._checksums = array("q"), array("q"), array("Q")
        self._member_starts, self._member_fields = array("q", [0]), array("q")
        self._member_offsets, self._member_lengths = array("q"), array("q")
        self._names: dict[str, int] = {}

    def add(self, key: str, offset: int, length: int, checksum: int, members: Sequence[tuple[str, int, int]]) -> None:
        """Add a sample; the members' offsets count from the sample's."""
        self._keys.append(key)
        self._offsets.append(offset)
        self._lengths.append(length)
        self._checksums.append(checksum)
        for name, member_offset, member_length in members:
            self._member_fields.append(self._names.setdefault(name, len(self._names)))
            self._member_offsets.append(member_offset)
            self._member_lengths.append(member_length)
        self._member_starts.append(len(self._member_fields))

    def index(self, shard_bytes: int) -> TarIndex:
        """The finished index."""
        return TarIndex(
            shard_bytes,
            tuple(self._names),
            Strings.of(self._keys),
            np.array(self._offsets, np.int64),
            np.array(self._lengths, np.int64),
            np.array(self._checksums, np.uint64),
            np.array(self._member_starts, np.int64),
            np.array(self._member_fields, np.int64),
            np.array(self._member_offsets, np.int64),
            np.array(self._member_lengths, np.int64),
        )


class TarIndex(SpansIndex):
    """The index of a tar shard."""

    format: ClassVar[str] = "tar"

    def __init__(
        self,
        shard_bytes: int,
        names: tuple[str, ...],
        keys: Strings,
        offsets: I64,
        lengths: I64,
        checksums: U64,
        member_starts: I64,
        member_fields: I64,
        member_offsets: I64,
        member_lengths: I64,
    ) -> None:
        """Sample i has members member_starts[i] .. member_starts[i + 1] - 1; their offsets count from the sample's."""
        super().__init__(shard_bytes, offsets, lengths, checksums)
        self._names, self._keys = names, keys
        self._arrays = (offsets, lengths, checksums, member_starts, member_fields, member_offsets, member_lengths)
        self._starts, self._fields = member_starts.data, member_fields.data
        self._member_offsets, self._member_lengths = member_offsets.data, member_lengths.data

    def __reduce__(self) -> tuple[Any, ...]:
        return TarIndex, (self.shard_bytes, self._names, self._keys, *self._arrays)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + sum(array.nbytes for array in self._arrays)

    @cached_property
    def layout(self) -> Layout | None:
        counts, num_fields = np.diff(self._arrays[3]), len(self._names)
        if not len(counts) or not np.all(counts == num_fields):
            return None
        fields, offsets, lengths = (array.reshape(-1, num_fields) for array in self._arrays[4:])
        if not np.all(fields == fields[0]) or len(set(fields[0].tolist())) < num_fields:
            return None
        columns = zip(fields[0].tolist(), offsets.T, lengths.T, strict=True)
        return Layout(*self._arrays[:3], {self._names[field]: (start, length) for field, start, length in columns})

    @property
    def fields(self) -> Mapping[str, Field]:
        """Every field that some sample has, in order of first appearance."""
        return {name: Field("bytes") for name in self._names}

    def key(self, i: int) -> str:
        return self._keys[i]

    def key_column(self, first: int, last: int) -> list[str] | NDArray[np.void]:
        return self._keys.column(first, last)

    def key_hashes(self) -> U64:
        return self._keys.hashes()

    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        shift = self._offsets[i] - base
        sample: dict[str, Any] = {"__key__": self._keys[i]}
        for member in range(self._starts[i], self._starts[i + 1]):
            at = shift + self._member_offsets[member]
            sample[self._names[self._fields[member]]] = data[at : at + self._member_lengths[member]]
        return sample

    def to_file(self) -> bytes:
        return self.to_file_with({})

    def to_file_with(self, facts: Mapping[str, str]) -> bytes:
        """The content of the index file, with more facts of the shard."""
        offsets, lengths, checksums, starts, fields, member_offsets, member_lengths = self._arrays
        columns: dict[str, Column] = {
            "key": self._keys,
            "offset": offsets,
            "length": lengths,
            "checksum": checksums,
            "member_field": Lists(starts, fields),
            "member_offset": Lists(starts, member_offsets),
            "member_length": Lists(starts, member_lengths),
        }
        return index_to_bytes(self.format, columns, {"fields": orjson.dumps(self._names).decode(), **facts})

    @classmethod
    def of(cls, file: IndexFile, shard_bytes: int) -> TarIndex:
        """The index that a file holds. Raises ManifestError if it is malformed or reaches outside the shard."""
        fields, offsets, lengths = (file.lists(f"member_{what}") for what in ("field", "offset", "length"))
        if not np.array_equal(fields.starts, offsets.starts) or not np.array_equal(fields.starts, lengths.starts):
            raise file.error("has lists of unequal length")
        index = cls(
            shard_bytes,
            _field_names(file),
            file.strings("key"),
            file.numbers("offset"),
            file.numbers("length"),
            file.numbers("checksum"),
            fields.starts,
            fields.values,
            offsets.values,
            lengths.values,
        )
        index._check_bounds(file)
        return index

    def _check_bounds(self, file: IndexFile) -> None:
        offsets, lengths, _, starts, fields, member_offsets, member_lengths = self._arrays
        within = np.repeat(lengths, np.diff(starts))
        ok = (
            _are_ranges(offsets, lengths, self.shard_bytes)
            and _are_ranges(member_offsets, member_lengths, within)
            and bool(np.all(offsets[1:] >= (offsets + lengths)[:-1]))
            and bool(np.all((fields >= 0) & (fields < len(self._names))))
        )
        if not ok:
            raise file.error(f"speaks of bytes outside its shard of {self.shard_bytes:,} bytes")


class CompressedTarIndex(StoredIndex):
    """The index of a compressed tar: the samples' offsets count in what it unpacks to.

    A sample is checked once it is unpacked. So of a shard that unpacks up to some byte only, the samples before it are
    whole, and the others are known by their keys.
    """

    format: ClassVar[str] = "tar"
    is_ranged = False

    def __init__(self, shard_bytes: int, codec: str, tar: TarIndex) -> None:
        """`tar` is the index of what the shard unpacks to."""
        self.shard_bytes = shard_bytes
        self._codec, self._tar = codec, tar

    def __reduce__(self) -> tuple[Any, ...]:
        return CompressedTarIndex, (self.shard_bytes, self._codec, self._tar)

    @property
    def num_samples(self) -> int:
        return self._tar.num_samples

    @property
    def nbytes(self) -> int:
        return self._tar.nbytes

    @property
    def sample_bytes(self) -> I64:
        return self._tar.sample_bytes

    @property
    def fields(self) -> Mapping[str, Field]:
        return self._tar.fields

    @property
    def unpacked_bytes(self) -> int:
        return self._tar.shard_bytes

    def key(self, i: int) -> str:
        return self._tar.key(i)

    def key_hashes(self) -> U64:
        return self._tar.key_hashes()

    def extent(self, first: int, last: int) -> tuple[int, int]:
        return (0, self.shard_bytes) if first < last else (0, 0)

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        return self._opened(first, last, _Unpacked(data, self._codec))

    def forward(self, read: Callable[[int, int], memoryview], size: int) -> Iterator[tuple[int, int, Opened]]:
        stream = _Unpacked(_Stored(read, min(size, self.shard_bytes)), self._codec)
        for first, last in self._tar.runs():
            yield first, last, self._opened(first, last, stream)

    def _opened(self, first: int, last: int, stream: _Unpacked) -> Opened:
        """These samples out of what is unpacked, which has been read up to the first of them at most."""
        base, length = self._tar.extent(first, last)
        try:
            view = np.zeros(length, np.uint8).data  # which takes memory only as far as it is filled
        except MemoryError:
            raise DamagedError(f"it unpacks to {length:,} bytes, more than there is memory: {REPACK}") from None
        failure = stream.fill(base, view)
        damage = self._tar.damage(first, last, view)
        if failure is not None:
            damage = dict.fromkeys(damage, failure)
        opened = OpenedRange(self._tar, base, view, damage)
        opened.num_bytes = length
        return opened

    def to_file(self) -> bytes:
        return self._tar.to_file_with({"codec": self._codec, "unpacked_bytes": str(self.unpacked_bytes)})

    def all_damage(self, read: Callable[[int, int], memoryview], size: int) -> Iterator[tuple[int, str]]:
        """As for every index, but sample by sample: a shard is checked without holding all that it unpacks to."""
        stream = _Unpacked(_Stored(read, min(size, self.shard_bytes)), self._codec)
        buffer = memoryview(bytearray(min(_SKIPPED_BYTES, int(self.sample_bytes.max(initial=0)))))
        for i in range(self.num_samples):
            offset, length = self._tar.extent(i, i + 1)
            checksum, failure = xxhash.xxh3_64(), None
            for at in range(0, length, len(buffer) or 1):
                chunk = buffer[: min(len(buffer), length - at)]
                failure = failure or stream.fill(offset + at, chunk)
                checksum.update(chunk)
            if reason := self._tar.differs(i, checksum.intdigest()):
                yield i, failure or reason


class _Unpacked:
    """What a shard unpacks to, read forward; where it stops, it says why, and goes on saying so."""

    def __init__(self, stored: Any, codec: str) -> None:
        self._stream = unpacked(stored, codec)
        self._codec, self._at = codec, 0
        self._failure: str | None = None

    def fill(self, offset: int, view: memoryview) -> str | None:
        """Fill the buffer with what lies from `offset` on; returns what kept that from being done, if anything did.

        Bytes before the failure are there: an error may come late, with the stream's own checksum.
        """
        scratch = memoryview(bytearray(min(_SKIPPED_BYTES, offset - self._at)))
        while self._failure is None and self._at < offset:
            self._read(scratch[: offset - self._at])
        start = self._at
        while self._failure is None and self._at - start < len(view):
            self._read(view[self._at - start :])
        return self._failure

    def _read(self, view: memoryview) -> None:
        try:
            count = self._stream.readinto(view)
        except UnpackError as err:
            self._failure = f"its shard does not unpack up to there as {self._codec} ({err})"
            return
        if not count:
            self._failure = f"its shard unpacks to {self._at:,} bytes only"
        self._at += count or 0


class _Stored:
    """The shard's bytes as a file that is read forward."""

    closed = False  # what Arrow asks of a file

    def __init__(self, read: Callable[[int, int], memoryview], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def read(self, length: int) -> memoryview:
        data = self._read(self._at, min(length, self._size - self._at))
        self._at += len(data)
        return data

    def close(self) -> None:
        """Nothing is held open."""


def read_tar_index(data: memoryview, name: str, shard_bytes: int) -> StoredIndex:
    """The index that a file holds. Raises ManifestError if it is malformed or reaches outside the shard."""
    file = IndexFile(data, name, TarIndex.format, _COLUMNS)
    codec = file.fact("codec", "")
    if not codec:
        return TarIndex.of(file, shard_bytes)
    text = file.fact("unpacked_bytes")
    if codec not in CODECS or codec == "snappy" or not (text.isascii() and text.isdigit() and len(text) < 19):
        raise file.error(f"is of a shard that is compressed as {codec[:20]!r} and unpacks to {text[:20]!r} bytes")
    return CompressedTarIndex(shard_bytes, codec, TarIndex.of(file, int(text)))


def _field_names(file: IndexFile) -> tuple[str, ...]:
    try:
        names = orjson.loads(file.fact("fields"))
    except orjson.JSONDecodeError as err:
        raise file.error(f"does not list its fields ({err})") from err
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise file.error("does not list its fields")
    return tuple(names)


def _are_ranges(offsets: I64, lengths: I64, within: int | I64) -> bool:
    """Whether every range is of at least no bytes and lies inside `within` bytes; sums cannot overflow."""
    return bool(np.all((offsets >= 0) & (lengths >= 0) & (lengths <= within) & (offsets <= within - lengths)))
