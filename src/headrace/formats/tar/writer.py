"""Writing tar shards: plain USTAR, a sample's members one behind the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from headrace.errors import SourceError
from headrace.formats.fields import Field
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.tar.index import TarIndex, TarRows
from headrace.formats.tar.names import check_field, check_key
from headrace.formats.tar.ustar import END, make_header, padded
from headrace.formats.values import value_to_bytes
from headrace.storage import quoted


class TarWriter(ShardWriter):
    """Writes a tar shard."""

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        super().__init__(path, fields)
        self._rows = TarRows()

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
    check_key(key)
    parts: list[bytes] = []
    members: list[tuple[str, int, int]] = []
    at = 0
    for name in sorted(field for field in sample if field != "__key__"):
        check_field(key, name)
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
