"""Writing an MDS shard. Its head says where the samples lie and stands before them, so they wait till all are there."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from headrace.errors import SourceError
from headrace.formats.columns import Strings
from headrace.formats.fields import Field
from headrace.formats.mds.columns import KEY, Columns
from headrace.formats.mds.compression import MAX_SHARD_BYTES
from headrace.formats.mds.encode import encoding_of, kind_of
from headrace.formats.mds.encodings import parse_encoding
from headrace.formats.mds.index import MdsIndex
from headrace.formats.mds.listed import config_of
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.shards import Shard
from headrace.formats.stems import key_stem
from headrace.storage import quoted, storage_refusals

_MEMORY_BYTES = 96 << 20
"""Samples that wait take no more memory than this; then they wait on the disk."""
_CHUNK_BYTES = 1 << 20
_WORD = 4
_TOO_LARGE = 1 << 63


class MdsWriter(ShardWriter):
    """Writes an MDS shard. The first sample of the dataset decides the columns."""

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        super().__init__(path, fields)
        self._kinds: dict[str, str] = {}
        self._config = b""
        if fields:
            self._begin(fields)
        self._keys: list[str] = []
        self._lengths: list[int] = []
        self._checksums: list[int] = []
        # The file has no name, so nothing is left of it whatever ends the process.
        self._body = tempfile.SpooledTemporaryFile(_MEMORY_BYTES, dir=str(path.parent))  # noqa: SIM115
        self._body_bytes = 0

    def size_with(self, sample: Encoded) -> int:
        num_bytes = self._head_bytes(self.num_samples + 1) + self._body_bytes + len(sample.blob)
        # More than the format can hold is more than any limit, so that the shard ends here whatever was asked for.
        return num_bytes if num_bytes <= MAX_SHARD_BYTES else _TOO_LARGE

    def finish(self) -> Shard:
        begin = self._head_bytes(len(self._lengths))
        offsets = np.cumsum([begin, *self._lengths], dtype=np.int64).astype("<u4")
        self._write(struct.pack("<I", len(self._lengths)) + offsets.tobytes() + self._config)
        with storage_refusals("read what waits for", self.path):
            self._body.seek(0)
            while chunk := self._body.read(_CHUNK_BYTES):
                self._write(chunk)
        self._body.close()
        return super().finish()

    def abandon(self) -> None:
        self._body.close()
        super().abandon()

    def _add(self, sample: Encoded) -> None:
        if not self._config:
            self._begin(sample.fields)
        kinds = {name: kind_of(name, field) for name, field in sample.fields.items()}
        if kinds != self._kinds:
            raise SourceError(f"sample {quoted(sample.key)}: {self._misfit(kinds, sample.fields)}")
        with storage_refusals("write", self.path):
            self._body.write(sample.blob)
        self._keys.append(sample.key)
        self._lengths.append(len(sample.blob))
        self._checksums.append(sample.checksum)
        self._body_bytes += len(sample.blob)

    def _added_bytes(self, sample: Encoded) -> int:
        return len(sample.blob) + _WORD

    def _index(self) -> MdsIndex:
        lengths = np.array(self._lengths, np.int64)
        offsets = self._head_bytes(len(lengths)) + np.cumsum(lengths) - lengths
        columns = Columns([(name, encoding) for name, encoding, _ in self._columns], quoted(self.path.name))
        keys, checksums = Strings.of(self._keys), np.array(self._checksums, np.uint64)
        return MdsIndex(self.num_bytes, key_stem(self.path.name), columns, keys, offsets, lengths, checksums)

    def _begin(self, fields: Mapping[str, Field]) -> None:
        self._kinds = {name: kind_of(name, field) for name, field in fields.items()}
        encodings = {KEY: "str"} | {name: encoding_of(name, field) for name, field in fields.items()}
        self._columns = [(name, encodings[name], parse_encoding(encodings[name]).size) for name in sorted(encodings)]
        self._config = config_of(self._columns)

    def _head_bytes(self, num_samples: int) -> int:
        return _WORD * (num_samples + 2) + len(self._config)

    def _misfit(self, kinds: Mapping[str, str], fields: Mapping[str, Field]) -> str:
        if kinds.keys() != self._kinds.keys():
            return (
                f"it has the fields {sorted(kinds)}, the samples before it {sorted(self._kinds)}: all samples of MDS "
                "have the same ones; bring them together in the transform"
            )
        name = next(name for name in kinds if kinds[name] != self._kinds[name])
        shown = "None" if fields[name].type == "null" else kinds[name]
        return (
            f"field {name!r} is {shown}, in the samples before it {self._kinds[name]}: a column of MDS has one "
            "type and no missing values; bring it to one type in the transform"
        )
