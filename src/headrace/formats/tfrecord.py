"""TFRecord shards: records with two checksums each, usually a `tf.train.Example`; plain, or packed by gzip or zlib.

A record is a length of 64 bits, the crc32c of it, the data, and the crc32c of that. Both are checked when a shard is
first read through, and when it is written; later the xxh3_64 in the index stands for them, over the same bytes. So only
scanning and writing need the package google-crc32c.

In a shard that holds no Example at all each sample has one field, `record`. A record that is none among others that are
is a damaged sample, and so is one of which the data's checksum is wrong. Where a length is wrong nothing behind it can
be found, unless a `.tfrecord.idx` as DALI's tfrecord2idx writes it says where records lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import xxhash

from headrace.errors import DamagedError, SourceError
from headrace.formats.checking import Checked
from headrace.formats.example import BYTES, INTS, ExampleError, Feature, parse_example, serialize_example
from headrace.formats.example_values import SHAPE, field_of, is_sound, joined, mixed, reader, reshaped, to_feature
from headrace.formats.fields import Field
from headrace.formats.format import Format, Found, Listing, ScanOptions
from headrace.formats.records import MOST_DAMAGED, RecordsIndex, Rows, RowsBuilder
from headrace.formats.records_frames import Frames
from headrace.formats.records_stream import ShardStream
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.shards import Shard
from headrace.formats.tfrecord_framing import (
    FOOTER_BYTES,
    HEADER_BYTES,
    framed,
    header_length,
    places_in,
    read_records,
)
from headrace.formats.unpacking import codec_of, unpacked_head
from headrace.storage import File, quoted

RECORD = "record"
"""The field of records that are no Examples."""

_KEY = "__key__"
_IDX = "idx"
_NUMBERS = re.compile(r"\d+")
_HEAD_BYTES = 512
_ZLIB = b"\x78"  # and its two bytes are a multiple of 31; Arrow unpacks it as it does gzip


class TFRecordIndex(RecordsIndex):
    """The index of a TFRecord shard."""

    format: ClassVar[str] = "tfrecord"

    def read_as(self, fields: Mapping[str, Field]) -> Self:
        # Where the dataset's field is not one that this shard's values are, they stay what they are.
        wider = {name: field for name, field in fields.items() if name in self._own_fields and is_sound(field)}
        return super().read_as({name: field for name, field in wider.items() if _holds(field, self._own_fields[name])})

    def _prepare(self) -> None:
        self._is_raw = self._facts["is_raw"] is True
        self._readers = [
            (name, reader(field), field.type == "array" and name + SHAPE not in self._own_fields)
            for name, field in self._reads_as.items()
        ]

    def _decoded(self, i: int, record: memoryview) -> dict[str, Any]:
        data = record[HEADER_BYTES:-FOOTER_BYTES]
        if self._is_raw:
            return {RECORD: data}
        features, sample = parse_example(data), {}
        for name, read, may_have_shape in self._readers:
            feature = features.get(name)
            if feature is not None:
                value = read(feature)
                sample[name] = reshaped(value, name, features) if may_have_shape else value
        return sample

    @classmethod
    def _made(
        cls, shard_bytes: int, rows: Rows, fields: Mapping[str, Field], reading: Checked, frames: Frames | None
    ) -> Self:
        reading["is_raw"]  # must be there
        for name, field in fields.items():
            if not is_sound(field):
                raise reading.error(f"must be about fields that a tfrecord has, {name!r} is one of {field.type}")
        return super()._made(shard_bytes, rows, fields, reading, frames)


class TFRecordWriter(ShardWriter):
    """Writes a TFRecord shard of Examples."""

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        super().__init__(path, fields)
        self._rows = RowsBuilder(path.name, quoted(path))
        self._own: dict[str, Field] = {}

    def _add(self, sample: Encoded) -> None:
        for name, field in sample.fields.items():
            self._check(sample.key, name, field)
            known = self._own.get(name)
            if known != field:
                self._own[name] = field if known is None else joined(known, field) or field
        self._rows.add(self.num_bytes, len(sample.blob), sample.checksum, sample.key)
        self._write(sample.blob)

    def _added_bytes(self, sample: Encoded) -> int:
        return len(sample.blob)

    def _index(self) -> TFRecordIndex:
        return TFRecordIndex(self.num_bytes, self._rows.rows(), self._own, {"is_raw": False})

    def _check(self, key: str, name: str, field: Field) -> None:
        for known in (self._own.get(name), self._fields.get(name)):
            if known is not None and joined(known, field) is None:
                raise SourceError(
                    f"sample {quoted(key)} has the field {name!r} as {_shown(field)}, samples before it as "
                    f"{_shown(known)}: give every sample's field one type in the transform"
                )


def encode_tfrecord(sample: Mapping[str, Any]) -> Encoded:
    """A sample as a record with its frame, its features in order of their names.

    Raises SourceError for what an Example cannot hold, OptionError if google-crc32c is not installed.
    """
    key = sample[_KEY]
    if len(sample) < 2:
        raise SourceError(f"sample {quoted(key)} has no fields; return None from the transform to drop it")
    features: dict[str, Feature] = {_KEY: to_feature(key, _KEY, key)[0]}
    fields: dict[str, Field] = {}
    for name in sorted(field for field in sample if field != _KEY):
        _check_name(key, name, sample)
        features[name], fields[name], shape = to_feature(key, name, sample[name])
        if shape is not None:
            features[name + SHAPE] = Feature(INTS, list(shape))
    data, ends = serialize_example(features)
    blob = framed(data)
    members = [_member(name, features[name], HEADER_BYTES + ends[name]) for name in fields if _is_bytes(fields[name])]
    return Encoded(key, blob, fields, tuple(members), xxhash.xxh3_64_intdigest(blob))


def find_tfrecords(listing: Listing, options: ScanOptions) -> Found | None:
    """The files of a folder that begin with a TFRecord's header, plain or packed, and those that are named like them.

    A shard whose first bytes are damaged is not to go missing.
    """
    found = {name for name in listing.names if _is_tfrecord(listing.head(name, _HEAD_BYTES))}
    patterns = {_NUMBERS.sub("0", name) for name in found}
    if not found and not all(".tfrecord" in name.lower() for name in listing.names):
        return None
    files = [name for name in listing.names if ".tfrecord" in name.lower() or _NUMBERS.sub("0", name) in patterns]
    return Found(files, [_Beside(listing, name) for name in files]) if files else None


def scan_tfrecord(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[TFRecordIndex, Shard]:
    """The index of an ordinary TFRecord file, made in one pass over it, and its row.

    Raises DamagedError for a file that is cut off, whose lengths are wrong or that is hardly right anywhere;
    OptionError if google-crc32c is not installed; DatasetError for a `.tfrecord.idx` that is not its own.
    """
    codec = _codec(bytes(file.read(0, min(_HEAD_BYTES, file.size))))
    with ShardStream(file, options, codec) as stream:
        places = None
        if hints.get(_IDX) is not None and stream.codec is None:
            places = places_in(hints[_IDX], quoted(f"{hints['file']}.idx"), file.size)
        scan = _Scan(stream, hints["file"])
        for offset, record, reason in read_records(stream, options.max_sample_bytes, places):
            scan.take(offset, record, reason)
        index = scan.index()
        return index, index.row(stream.digest())


class _Scan:
    """What a pass over a shard finds: where records lie, and which features they have."""

    def __init__(self, stream: ShardStream, file: str) -> None:
        self._stream = stream
        self._rows = RowsBuilder(file, stream.name)
        self._seen: set[tuple[str, int, int]] = set()
        self._fields: dict[str, Field] = {}
        self._strange: dict[int, str] = {}
        self._num_strange = self._num_examples = 0

    def take(self, offset: int, record: bytes, reason: str | None) -> None:
        """The next record, and what is wrong with it."""
        key = None
        if reason is not None:
            self._rows.mark(len(self._rows), reason)
        else:
            key = self._look(memoryview(record)[HEADER_BYTES:-FOOTER_BYTES])
        checksum = 0 if self._stream.codec else xxhash.xxh3_64_intdigest(record)
        self._rows.add(offset, len(record), checksum, key)

    def index(self) -> TFRecordIndex:
        """The finished index. Raises DamagedError if many records are something else than the others."""
        is_raw = self._num_strange > 0 and not self._num_examples
        if not is_raw:
            for i, reason in self._strange.items():
                self._rows.mark(i, reason)
            if self._num_strange > MOST_DAMAGED:
                raise DamagedError(
                    f"{self._stream.name} has {self._num_examples:,} Examples and {self._num_strange:,} records that "
                    "are something else: put them into files of their own"
                )
        fields = {RECORD: Field("bytes")} if is_raw else {name: self._fields[name] for name in sorted(self._fields)}
        frames = self._stream.frames(len(self._rows))
        return TFRecordIndex(self._stream.stored_bytes, self._rows.rows(), fields, {"is_raw": is_raw}, frames)

    def _look(self, data: memoryview) -> str | None:
        """Note a record's features; its key, if it has one."""
        try:
            features = parse_example(data)
        except ExampleError as err:
            self._num_strange += 1
            if len(self._strange) <= MOST_DAMAGED:
                self._strange[len(self._rows)] = f"it is no tf.train.Example: {err}"
            return None
        self._num_examples += 1
        for name, feature in features.items():
            seen = (name, feature.kind, len(feature.values))
            if name != _KEY and seen not in self._seen:
                self._seen.add(seen)
                field = field_of(feature)
                known = self._fields.get(name, field)
                self._fields[name] = join_fields(known, field)
        return _key_of(features.get(_KEY))


class _Beside(Mapping[str, Any]):
    """What lies beside a shard, read only when it is scanned: there may be thousands."""

    def __init__(self, listing: Listing, name: str) -> None:
        self._listing, self._name = listing, f"{name}.{_IDX}"

    def __getitem__(self, what: str) -> bytes | None:
        if what != _IDX:
            raise KeyError(what)
        try:
            return self._listing.read(self._name)
        except FileNotFoundError:
            return None

    def __iter__(self) -> Iterator[str]:
        return iter((_IDX,))

    def __len__(self) -> int:
        return 1


def join_fields(one: Field, other: Field) -> Field:
    """What holds for a feature that is the one in some records or shards and the other in others."""
    return joined(one, other) or mixed()


def _holds(field: Field, own: Field) -> bool:
    """Whether values of the one field may be given as values of the other."""
    both = join_fields(own, field)
    return (both.type, both.dtype) == (field.type, field.dtype)


def _key_of(feature: Feature | None) -> str | None:
    if feature is None or feature.kind != BYTES or len(feature.values) != 1:
        return None
    try:
        return str(feature.values[0], "utf-8")
    except UnicodeDecodeError:
        return None


def _check_name(key: str, name: str, sample: Mapping[str, Any]) -> None:
    if not isinstance(name, str) or not name.isprintable() or not name:
        raise SourceError(f"sample {quoted(key)}: {name!r} cannot be a field of a tfrecord; rename it in the transform")
    if name.endswith(SHAPE) and name.removesuffix(SHAPE) in sample:
        raise SourceError(
            f"sample {quoted(key)}: the field {name!r} is where the shape of {name.removesuffix(SHAPE)!r} is kept; "
            "rename it in the transform"
        )


def _is_bytes(field: Field) -> bool:
    return field.type in ("bytes", "image")


def _member(name: str, feature: Feature, end: int) -> tuple[str, int, int]:
    """Where a feature of one value, which comes last in it, lies in the record."""
    length = len(feature.values[0])
    return name, end - length, length


def _shown(field: Field) -> str:
    return field.type if field.dtype is None else f"{field.type} of {field.dtype}"


def _is_tfrecord(head: bytes) -> bool:
    codec = _codec(head)
    return header_length(head if codec is None else unpacked_head(head, codec, HEADER_BYTES)) is not None


def _codec(head: bytes) -> str | None:
    """The packing of a file. It is none if a plain record begins it, whatever its length looks like."""
    if header_length(head) is not None:
        return None
    is_zlib = head[:1] == _ZLIB and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0
    return codec_of(head) or ("gz" if is_zlib else None)


TFRECORD = Format(
    "tfrecord",
    ".tfrecord",
    find_tfrecords,
    scan_tfrecord,
    TFRecordIndex.from_file,
    encode_tfrecord,
    TFRecordWriter,
    join=join_fields,
)
