"""The manifest: what a packed dataset is, in one small JSON file.

It holds what must be known before any sample is read: the format, the fields, the classes, and one row a shard (name,
samples, bytes, checksums). What is known of single samples lies beside each shard in its index and is read when
needed, so a manifest stays small however many samples there are. It is written last: a folder with a manifest is a
whole dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from headrace.errors import ManifestError
from headrace.formats.checking import MAX_INTEGER, Checked
from headrace.storage import LocalFile, quoted, write_file

MANIFEST_NAME = "headrace.json"
MANIFEST_VERSION = 1
INDEX_SUFFIX = ".idx"


@dataclass(frozen=True, slots=True)
class Field:
    """What every sample has under one name."""

    type: str
    """`bytes`, or `array` where the format has types."""
    dtype: str | None = None
    """The type of an array's elements, such as `uint16`."""
    shape: tuple[int, ...] | None = None
    """The shape of the array if all samples share it."""
    image_size: tuple[int, int] | None = None
    """(height, width) in pixels if every sample's field is an encoded image of this size, measured while packing."""

    def merged(self, other: Field) -> Field:
        """What holds for the samples of both; the element type is the first one's."""
        return Field(
            self.type,
            self.dtype,
            self.shape if self.shape == other.shape else None,
            self.image_size if self.image_size == other.image_size else None,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object without what is unknown."""
        values = {"type": self.type, "dtype": self.dtype, "shape": self.shape, "image_size": self.image_size}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Shard:
    """One row of a manifest."""

    file: str
    samples: int
    bytes: int
    xxh3_128: str
    index_xxh3_128: str

    @classmethod
    def from_json(cls, value: Checked) -> Shard:
        """The row of a JSON object, checked."""
        return cls(
            value["file"].file_name(),
            value["samples"].integer(),
            value["bytes"].integer(),
            value["xxh3_128"].hex_digest(),
            value["index_xxh3_128"].hex_digest(),
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object of the row."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """The shards of a dataset as columns, in storage order."""

    file: tuple[str, ...]
    """Names within the dataset's folder, in full."""
    samples: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    xxh3_128: tuple[str, ...]
    """Checksum of the whole shard, lower-case hex."""
    index_xxh3_128: tuple[str, ...]
    """Checksum of the shard's index file."""

    @classmethod
    def of(cls, rows: Sequence[Shard]) -> Shards:
        """The columns of these rows."""
        return cls(
            tuple(row.file for row in rows),
            np.array([row.samples for row in rows], np.int64),
            np.array([row.bytes for row in rows], np.int64),
            tuple(row.xxh3_128 for row in rows),
            tuple(row.index_xxh3_128 for row in rows),
        )

    def __len__(self) -> int:
        return len(self.file)

    def to_json(self) -> dict[str, list[Any]]:
        """The columns as plain lists."""
        return {
            "file": list(self.file),
            "samples": self.samples.tolist(),
            "bytes": self.bytes.tolist(),
            "xxh3_128": list(self.xxh3_128),
            "index_xxh3_128": list(self.index_xxh3_128),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """What a dataset is. Small to pickle; two manifests are equal if their JSON is."""

    format: str
    fields: Mapping[str, Field]
    shards: Shards
    classes: tuple[str, ...] | None = None
    """Names of the classes that the integers in the field `cls` stand for, in order."""
    request: str | None = None
    """Digest of the source and the options that `pack` was given; None for shards that headrace did not write."""
    skipped: int = 0
    """Broken samples that `pack` passed over."""
    version: int = MANIFEST_VERSION
    samples: int = field(init=False)
    bytes: int = field(init=False)
    fingerprint: str = field(init=False)
    """Digest of the samples' bytes and order, 32 hex digits: equal fingerprints, equal samples."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", int(self.shards.samples.sum()))
        object.__setattr__(self, "bytes", int(self.shards.bytes.sum()))
        object.__setattr__(self, "fingerprint", _fingerprint(self.format, self.shards))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that the file holds."""
        return {
            "version": self.version,
            "format": self.format,
            "samples": self.samples,
            "bytes": self.bytes,
            "fields": {name: field.to_json() for name, field in self.fields.items()},
            "classes": None if self.classes is None else list(self.classes),
            "fingerprint": self.fingerprint,
            "request": self.request,
            "skipped": self.skipped,
            "shards": self.shards.to_json(),
        }

    def write(self, folder: Path) -> None:
        """Write the manifest into the dataset's folder, whole or not at all."""
        write_file(folder / MANIFEST_NAME, orjson.dumps(self.to_json()) + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder. Raises ManifestError if it is malformed or of a version unknown to this release."""
        path = folder / MANIFEST_NAME
        with LocalFile(path) as file:
            data = bytes(file.read(0, file.size))
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError as err:
            raise ManifestError(f"{quoted(path)} is not valid JSON ({err}): restore it, or make it again") from err
        return _parse(Checked(value, str(path)))


def shard_name(number: int, suffix: str) -> str:
    """The file name of a packed dataset's n-th shard."""
    return f"shard-{number:06d}{suffix}"


def fields_from_json(value: Checked) -> dict[str, Field]:
    """The fields of a JSON object, checked."""
    return {name: _field(item) for name, item in value.items()}


def _fingerprint(format_name: str, shards: Shards) -> str:
    content = [format_name, shards.samples.tolist(), list(shards.xxh3_128)]
    return xxhash.xxh3_128_hexdigest(orjson.dumps(content))


def _parse(value: Checked) -> Manifest:
    version = value["version"].integer()
    if version != MANIFEST_VERSION:
        raise ManifestError(
            f"{quoted(value.where)} has version {version}, this release of headrace reads version {MANIFEST_VERSION}: "
            f"{'upgrade headrace' if version > MANIFEST_VERSION else 'index the dataset again'}"
        )
    manifest = Manifest(
        format=value["format"].text(),
        fields=fields_from_json(value["fields"]),
        shards=_shards(value["shards"]),
        classes=value.get("classes").optional(lambda item: tuple(name.text() for name in item.elements())),
        request=value.get("request").optional(Checked.text),
        skipped=value.get("skipped").optional(Checked.integer) or 0,
    )
    for name in ("samples", "bytes", "fingerprint"):
        stated, computed = value[name].value, getattr(manifest, name)
        if stated != computed:
            raise value[name].error(f"must agree with the shards listed: they give {computed!r}")
    return manifest


def _field(item: Checked) -> Field:
    def sizes(numbers: Checked) -> tuple[int, ...]:
        return tuple(number.integer() for number in numbers.elements())

    image_size = item.get("image_size").optional(sizes)
    if image_size is not None and len(image_size) != 2:
        raise item["image_size"].error("must be [height, width]")
    return Field(
        item["type"].text(),
        item.get("dtype").optional(Checked.text),
        item.get("shape").optional(sizes),
        (image_size[0], image_size[1]) if image_size else None,
    )


def _shards(value: Checked) -> Shards:
    files = tuple(item.file_name() for item in value["file"].elements())
    if len(set(files)) != len(files):
        raise value["file"].error("must name every shard once")
    columns = {name: value[name].elements() for name in ("samples", "bytes", "xxh3_128", "index_xxh3_128")}
    for name, column in columns.items():
        if len(column) != len(files):
            raise value[name].error(f"must have one entry a shard: {len(files)} shards, {len(column)} entries")
    return Shards(
        files,
        _counts(value["samples"]),
        _counts(value["bytes"]),
        tuple(item.hex_digest() for item in columns["xxh3_128"]),
        tuple(item.hex_digest() for item in columns["index_xxh3_128"]),
    )


def _counts(column: Checked) -> npt.NDArray[np.int64]:
    counts = [item.integer() for item in column.elements()]
    if sum(counts) > MAX_INTEGER:
        raise column.error("must add up to less than 2^63")
    return np.array(counts, np.int64)
