"""The index of a TFRecord shard, and which field holds what its records say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from headrace.formats.checking import Checked
from headrace.formats.fields import Field
from headrace.formats.records.frames import Frames
from headrace.formats.records.index import RecordsIndex, Rows
from headrace.formats.tfrecord.example import parse_example
from headrace.formats.tfrecord.example_values import (
    SHAPE,
    is_sound,
    joined,
    mixed,
    reader,
    reshaped,
)
from headrace.formats.tfrecord.framing import (
    FOOTER_BYTES,
    HEADER_BYTES,
)

RECORD = "record"
"""The field of records that are no Examples."""


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


def join_fields(one: Field, other: Field) -> Field:
    """What holds for a feature that is the one in some records or shards and the other in others."""
    return joined(one, other) or mixed()


def _holds(field: Field, own: Field) -> bool:
    """Whether values of the one field may be given as values of the other."""
    both = join_fields(own, field)
    return (both.type, both.dtype) == (field.type, field.dtype)
