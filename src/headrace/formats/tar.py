"""Tar shards as WebDataset lays them out: neighbours whose names differ only behind the first dot are one sample.

`d/a.jpg` and `d/a.seg.png` are the fields `jpg` and `seg.png` of the sample `d/a`. Members that are no ordinary files,
have no dot in the last part of their name, or begin with `__name__` are passed over, and so are fields of such a name:
`__key__` is the key. A sample's bytes reach from its
first header to the next sample's: the checksum covers headers and padding too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
import xxhash

from headrace.errors import DamagedError, DatasetError, OptionError, SourceError
from headrace.formats.arrow import Column, IndexFile, Lists, index_to_bytes
from headrace.formats.columns import I64, U64, Strings
from headrace.formats.index import RangedIndex, StoredIndex
from headrace.formats.fields import Field
from headrace.formats.format import Format, Found, Listing, ScanOptions
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.shards import Shard
from headrace.formats.ustar import (
    BLOCK_BYTES,
    END,
    Header,
    TarError,
    extend,
    make_header,
    padded,
    parse_extension,
    parse_header,
)
from headrace.formats.values import value_to_bytes
from headrace.storage import File, quoted

_MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")
_PRIVATE_FIELD = re.compile(r"__.*__")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_UNPACK = "it is compressed, unpack it first"
_CHUNK_BYTES = 1 << 20
_MAX_EXTENSION_BYTES = 1 << 20
_COLUMNS = (
    ("key", "text"),
    ("offset", "int64"),
    ("length", "int64"),
    ("checksum", "uint64"),
    ("member_field", "int64s"),
    ("member_offset", "int64s"),
    ("member_length", "int64s"),
)


def split_name(name: str) -> tuple[str, str] | None:
    """Key and field of a member or a file, from its name with `/`; None for names that belong to no sample."""
    found = _MEMBER.match(name)
    if found is None or _META.match(name) or _PRIVATE_FIELD.fullmatch(found[2]):
        return None
    return found[1], found[2].lower()


@dataclass(slots=True)
class _Rows:
    """The index of a shard, as it grows."""

    keys: list[str] = dataclass_field(default_factory=list)
    offsets: list[int] = dataclass_field(default_factory=list)
    lengths: list[int] = dataclass_field(default_factory=list)
    checksums: list[int] = dataclass_field(default_factory=list)
    member_starts: list[int] = dataclass_field(default_factory=lambda: [0])
    member_fields: list[int] = dataclass_field(default_factory=list)
    member_offsets: list[int] = dataclass_field(default_factory=list)
    member_lengths: list[int] = dataclass_field(default_factory=list)
    names: dict[str, int] = dataclass_field(default_factory=dict)

    def add(self, key: str, offset: int, length: int, checksum: int, members: Sequence[tuple[str, int, int]]) -> None:
        """Add a sample; the members' offsets count from the sample's."""
        self.keys.append(key)
        self.offsets.append(offset)
        self.lengths.append(length)
        self.checksums.append(checksum)
        for name, member_offset, member_length in members:
            self.member_fields.append(self.names.setdefault(name, len(self.names)))
            self.member_offsets.append(member_offset)
            self.member_lengths.append(member_length)
        self.member_starts.append(len(self.member_fields))

    def index(self, shard_bytes: int) -> TarIndex:
        """The finished index."""
        return TarIndex(
            shard_bytes,
            tuple(self.names),
            Strings.of(self.keys),
            np.array(self.offsets, np.int64),
            np.array(self.lengths, np.int64),
            np.array(self.checksums, np.uint64),
            np.array(self.member_starts, np.int64),
            np.array(self.member_fields, np.int64),
            np.array(self.member_offsets, np.int64),
            np.array(self.member_lengths, np.int64),
        )


class TarIndex(RangedIndex, StoredIndex):
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
        self.shard_bytes = shard_bytes
        self._names, self._keys = names, keys
        self._arrays = (offsets, lengths, checksums, member_starts, member_fields, member_offsets, member_lengths)
        # A memoryview gives a Python int in a third of the time that an array takes, without holding a list of them.
        self._offsets, self._lengths, self._checksums = offsets.data, lengths.data, checksums.data
        self._starts, self._fields = member_starts.data, member_fields.data
        self._member_offsets, self._member_lengths = member_offsets.data, member_lengths.data

    def __reduce__(self) -> tuple[Any, ...]:
        return TarIndex, (self.shard_bytes, self._names, self._keys, *self._arrays)

    @property
    def num_samples(self) -> int:
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + sum(array.nbytes for array in self._arrays)

    @property
    def sample_bytes(self) -> I64:
        return self._arrays[1]

    @property
    def fields(self) -> Mapping[str, Field]:
        """Every field that some sample has, in order of first appearance."""
        return {name: Field("bytes") for name in self._names}

    def key(self, i: int) -> str:
        return self._keys[i]

    def extent(self, first: int, last: int) -> tuple[int, int]:
        if first >= last:
            return 0, 0
        offset = self._offsets[first]
        return offset, self._offsets[last - 1] + self._lengths[last - 1] - offset

    def damage(self, first: int, last: int, data: memoryview) -> dict[int, str]:
        base = self._offsets[first] if first < last else 0
        found = {}
        for i in range(first, last):
            at = self._offsets[i] - base
            checksum = xxhash.xxh3_64_intdigest(data[at : at + self._lengths[i]])
            if checksum != self._checksums[i]:
                found[i] = f"its checksum is {checksum:016x}, not {self._checksums[i]:016x}"
        return found

    def sample(self, i: int, data: memoryview, base: int) -> dict[str, Any]:
        shift = self._offsets[i] - base
        sample: dict[str, Any] = {"__key__": self._keys[i]}
        for member in range(self._starts[i], self._starts[i + 1]):
            at = shift + self._member_offsets[member]
            sample[self._names[self._fields[member]]] = data[at : at + self._member_lengths[member]]
        return sample

    def to_file(self) -> bytes:
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
        return index_to_bytes(self.format, columns, {"fields": orjson.dumps(self._names).decode()})

    @classmethod
    def from_file(cls, data: memoryview, name: str, shard_bytes: int) -> TarIndex:
        """The index that a file holds. Raises ManifestError if it is malformed or reaches outside the shard."""
        file = IndexFile(data, name, cls.format, _COLUMNS)
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


class TarWriter(ShardWriter):
    """Writes a tar shard."""

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        super().__init__(path, fields)
        self._rows = _Rows()

    def _add(self, sample: Encoded) -> None:
        self._rows.add(sample.key, self.num_bytes, len(sample.blob), sample.checksum, sample.members)
        self._write(sample.blob)

    def _added_bytes(self, sample: Encoded) -> int:
        return len(sample.blob)

    def _trailer(self) -> bytes:
        return END

    def _index(self) -> TarIndex:
        return self._rows.index(self.num_bytes)


def encode_tar(sample: Mapping[str, Any]) -> Encoded:
    """A sample as tar members, in order of their fields' names. Raises SourceError for what a tar cannot hold."""
    key = sample["__key__"]
    _check_key(key)
    parts: list[bytes] = []
    members: list[tuple[str, int, int]] = []
    at = 0
    for name in sorted(field for field in sample if field != "__key__"):
        _check_field(key, name)
        data = value_to_bytes(key, name, sample[name])
        header = make_header(f"{key}.{name}", len(data))
        members.append((name, at + len(header), len(data)))
        parts += (header, data, bytes(padded(len(data)) - len(data)))
        at += len(header) + padded(len(data))
    if not members:
        raise SourceError(f"sample {quoted(key)} has no fields; return None from the transform to drop it")
    blob = b"".join(parts)
    fields = {name: Field("bytes") for name, _, _ in members}
    return Encoded(key, blob, fields, tuple(members), xxhash.xxh3_64_intdigest(blob))


def find_tars(listing: Listing, options: ScanOptions) -> Found | None:
    """The files of a folder that begin with a tar header, or are empty tars by name."""
    files = [name for name in listing.names if _is_tar(listing.head(name, BLOCK_BYTES), name)]
    return Found(files) if files else None


def scan_tar(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[TarIndex, Shard]:
    """The index of an ordinary tar, made in one pass over the file, and its row.

    Raises DamagedError if the tar is cut off or broken, DatasetError if its samples are not adjacent.
    """
    if options.dtype is not None:
        raise OptionError(f"dtype is for token files (.bin), and {file.name} is a tar: leave it out")
    with file.stream() as stream:
        scan = _Scan(stream, file.name)
        index = scan.run()
    return index, Shard("", index.num_samples, index.shard_bytes, scan.digest.hexdigest(), "")


def _is_tar(head: bytes, name: str) -> bool:
    if name.lower().endswith(".tar"):
        return True
    if len(head) < BLOCK_BYTES or not head.strip(b"\0"):
        return False
    try:
        parse_header(head)
    except TarError:
        return False
    return True


class _Scan:
    """One pass over a tar: members to samples, and checksums on the way."""

    def __init__(self, file: io.BufferedReader, name: str) -> None:
        self.digest = xxhash.xxh3_128()
        self._file, self._name = file, name
        self._at = 0
        self._rows = _Rows()
        self._seen: set[str] = set()
        self._key: str | None = None
        self._members: list[tuple[str, int, int]] = []
        self._start = 0
        self._checksum = xxhash.xxh3_64()

    def run(self) -> TarIndex:
        """Scan the file to its end."""
        while (block := self._read(BLOCK_BYTES)) != END[:BLOCK_BYTES]:
            try:
                self._take_member(block)
            except TarError as err:
                raise DamagedError(f"{self._name} is not a whole tar: {self._hint(block)}{err}") from err
        self._close_sample(self._at - BLOCK_BYTES)
        self._check_end()
        return self._rows.index(self._at)

    def _take_member(self, block: bytes) -> None:
        start, heading = self._at - BLOCK_BYTES, [block]
        header, extension = parse_header(block), dict[str, str]()
        while header.is_extension:
            if header.size > _MAX_EXTENSION_BYTES:
                raise TarError(f"an extended header of {header.size:,} bytes")
            data = self._read(header.data_bytes)
            extension |= parse_extension(header, data)
            block = self._read(BLOCK_BYTES)
            heading += (data, block)
            header = parse_header(block)
        header = extend(header, extension)
        self._enter(header, start)
        for part in heading:
            self._checksum.update(part)
        self._pass_over(header.data_bytes)

    def _enter(self, header: Header, start: int) -> None:
        named = split_name(header.name) if header.is_regular else None
        if named is None:
            return
        key, field = named
        if key != self._key:
            self._open_sample(key, start)
        if any(field == name for name, _, _ in self._members):
            raise DatasetError(f"{self._name}: sample {quoted(key)} has the field {field!r} twice; rename one of them")
        self._members.append((field, self._at - self._start, header.size))

    def _open_sample(self, key: str, start: int) -> None:
        self._close_sample(start)
        if key in self._seen:
            raise DatasetError(
                f"{self._name}: the key {quoted(key)} comes back after other keys; files of one sample must be "
                "neighbours: make the tar from sorted names (tar --sort=name)"
            )
        self._seen.add(key)
        self._key, self._start, self._members = key, start, []
        self._checksum = xxhash.xxh3_64()

    def _close_sample(self, end: int) -> None:
        if self._key is not None:
            checksum = self._checksum.intdigest()
            self._rows.add(self._key, self._start, end - self._start, checksum, self._members)

    def _pass_over(self, length: int) -> None:
        while length:
            chunk = self._read(min(length, _CHUNK_BYTES))
            self._checksum.update(chunk)
            length -= len(chunk)

    def _check_end(self) -> None:
        if self._read(BLOCK_BYTES) != END[:BLOCK_BYTES]:
            raise DamagedError(f"{self._name} is not a whole tar: a single zero block at byte {self._at - 1024:,}")
        while chunk := self._file.read(_CHUNK_BYTES):
            self._count(chunk)
            if chunk.strip(b"\0"):
                raise DamagedError(
                    f"{self._name} has data behind its end, which other readers would pass over in silence: "
                    "tars joined by cat must be joined by tar --concatenate"
                )

    def _read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) < length:
            if not self._at and data.startswith(_COMPRESSED):
                raise DamagedError(f"{self._name} is not a tar: {_UNPACK}")
            raise DamagedError(
                f"{self._name} is cut short: it ends at byte {self._at + len(data):,} "
                f"{'without the two zero blocks that end a tar' if not data else 'inside a member'}; restore it"
            )
        self._count(data)
        return data

    def _count(self, data: bytes) -> None:
        self.digest.update(data)
        self._at += len(data)

    def _hint(self, block: bytes) -> str:
        return f"{_UNPACK}; " if block.startswith(_COMPRESSED) else f"near byte {self._at - BLOCK_BYTES:,}, "


def _check_key(key: str) -> None:
    last = key.rpartition("/")[2]
    if "." in last or not last or key.startswith("/") or ".." in key.split("/") or _META.match(key):
        raise SourceError(
            f"sample key {quoted(key)} cannot be the name of tar members: a key is a relative path without a dot in "
            "its last part, and does not begin with __name__; give another `__key__`"
        )


def _check_field(key: str, name: str) -> None:
    if not name or "/" in name or name != name.lower() or not name.isprintable():
        raise SourceError(
            f"sample {quoted(key)}: {name!r} cannot be a field of a tar: a field is named like a file extension, in "
            "lower case and without a slash; rename it in the transform"
        )


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


TAR = Format("tar", ".tar", find_tars, scan_tar, TarIndex.from_file, encode_tar, TarWriter)
