"""One pass over a TFRecord shard: where its records lie, and which features they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from headrace.errors import DamagedError
from headrace.formats.fields import Field
from headrace.formats.format import ScanOptions
from headrace.formats.records.index import MOST_DAMAGED, RowsBuilder
from headrace.formats.records.stream import ShardStream
from headrace.formats.shards import Shard
from headrace.formats.tfrecord.example import BYTES, ExampleError, Feature, parse_example
from headrace.formats.tfrecord.example_values import (
    field_of,
)
from headrace.formats.tfrecord.find import IDX, codec_in
from headrace.formats.tfrecord.framing import (
    FOOTER_BYTES,
    HEADER_BYTES,
    places_in,
    read_records,
)
from headrace.formats.tfrecord.index import RECORD, TFRecordIndex, join_fields
from headrace.storage import File, quoted

_KEY = "__key__"
_HEAD_BYTES = 512


def scan_tfrecord(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[TFRecordIndex, Shard]:
    """The index of an ordinary TFRecord file, made in one pass over it, and its row.

    Raises DamagedError for a file that is cut off, whose lengths are wrong or that is hardly right anywhere;
    OptionError if google-crc32c is not installed; DatasetError for a `.tfrecord.idx` that is not its own.
    """
    codec = codec_in(bytes(file.read(0, min(_HEAD_BYTES, file.size))))
    with ShardStream(file, options, codec) as stream:
        places = None
        if hints.get(IDX) is not None and stream.codec is None:
            places = places_in(hints[IDX], quoted(f"{hints['file']}.idx"), file.size)
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


def _key_of(feature: Feature | None) -> str | None:
    if feature is None or feature.kind != BYTES or len(feature.values) != 1:
        return None
    try:
        return str(feature.values[0], "utf-8")
    except UnicodeDecodeError:
        return None
