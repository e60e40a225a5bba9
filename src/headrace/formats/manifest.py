"""The manifest: what a packed dataset is, in one small JSON file.

It holds what must be known before any sample is read: the format, the fields, the classes, and one row a shard (name,
samples, bytes, checksums). What is known of single samples lies beside each shard in its index and is read when
needed, so a manifest stays small however many samples there are. It is written last: a folder with a manifest is a
whole dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import xxhash

from headrace.errors import ManifestError
from headrace.formats.checking import Checked
from headrace.formats.fields import Field, fields_from_json
from headrace.formats.manifest_text import parse_manifest
from headrace.formats.shards import Shards
from headrace.storage import LocalFile, quoted, write_file

Buffer = bytes | memoryview

MANIFEST_NAME = "headrace.json"
MANIFEST_VERSION = 1
INDEX_SUFFIX = ".idx"
CLASS_FIELD = "cls"


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """What a dataset is. Small to pickle; two manifests are equal if their JSON is."""

    format: str
    fields: Mapping[str, Field]
    shards: Shards
    classes: tuple[str, ...] | None = None
    """Names of the classes that the integers in the field `class_field` stand for, in order."""
    request: str | None = None
    """Digest of the source and the options that `pack` was given; None for shards that headrace did not write."""
    skipped: int = 0
    """Broken samples that `pack` passed over."""
    revision: int = 1
    """How many times the dataset was written: 1, and one more for each time that samples were appended."""
    shards_url: str | None = None
    """Where the shards lie, if not beside the manifest: an ordinary dataset in a place that takes no files."""
    class_field: str = CLASS_FIELD
    """`cls`, unless shards that name their classes themselves call it otherwise."""
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
            "class_field": None if self.classes is None else self.class_field,
            "fingerprint": self.fingerprint,
            "request": self.request,
            "skipped": self.skipped,
            "revision": self.revision,
            "shards_url": self.shards_url,
            "shards": self.shards.to_json(),
        }

    def to_bytes(self) -> bytes:  # type: ignore[valid-type]  # `bytes` is a field here
        """The file's content."""
        return orjson.dumps(self.to_json()) + b"\n"

    def write(self, folder: Path) -> None:
        """Write the manifest into the dataset's folder, whole or not at all."""
        write_file(folder / MANIFEST_NAME, self.to_bytes())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder. Raises ManifestError if it is malformed or of a version unknown to this release."""
        path = folder / MANIFEST_NAME
        with LocalFile(path) as file:
            return cls.parse(file.read(0, file.size), str(path))

    @classmethod
    def parse(cls, data: Buffer, where: str) -> Manifest:
        """The manifest that a file's content is; `where` names the file. Raises as `read`."""
        try:
            value = parse_manifest(data)
        except orjson.JSONDecodeError as err:
            raise ManifestError(f"{quoted(where)} is not valid JSON ({err}): restore it, or make it again") from err
        return _parse(Checked(value, where))


def shard_name(number: int, suffix: str) -> str:
    """The file name of a packed dataset's n-th shard."""
    return f"shard-{number:06d}{suffix}"


def _fingerprint(format_name: str, shards: Shards) -> str:
    digest = xxhash.xxh3_128(f"{format_name}\n".encode())
    digest.update(shards.samples.astype("<i8").tobytes())
    digest.update(shards.xxh3_128.data)
    return digest.hexdigest()


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
        shards=Shards.from_json(value["shards"]),
        classes=value.get("classes").optional(lambda item: tuple(name.text() for name in item.elements())),
        class_field=value.get("class_field").optional(Checked.text) or CLASS_FIELD,
        request=value.get("request").optional(Checked.text),
        skipped=value.get("skipped").optional(Checked.integer) or 0,
        revision=value.get("revision").optional(Checked.integer) or 1,
        shards_url=value.get("shards_url").optional(Checked.text),
    )
    for name in ("samples", "bytes", "fingerprint"):
        stated, computed = value[name].value, getattr(manifest, name)
        if stated != computed:
            raise value[name].error(f"must agree with the shards listed: they give {computed!r}")
    return manifest
