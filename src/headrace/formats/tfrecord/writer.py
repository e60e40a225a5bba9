"""Writing TFRecord shards: samples as framed Examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from headrace.errors import SourceError
from headrace.formats.fields import Field
from headrace.formats.records.index import RowsBuilder
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.tfrecord.example import INTS, Feature, serialize_example
from headrace.formats.tfrecord.example_values import (
    SHAPE,
    joined,
    to_feature,
)
from headrace.formats.tfrecord.framing import (
    HEADER_BYTES,
    framed,
)
from headrace.formats.tfrecord.index import TFRecordIndex
from headrace.storage import quoted

_KEY = "__key__"


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
