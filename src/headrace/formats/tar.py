"""Tar shards as WebDataset lays them out: neighbours whose names differ only behind the first dot are one sample.

A sample's bytes reach from its first header to the next sample's: the checksum covers headers and padding too. Shards
are written as plain USTAR; compressed ones (gz, bz2, xz, zst) are read as well, each unpacked as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from headrace.errors import SourceError
from headrace.formats.fields import Field
from headrace.formats.format import Format, Found, Listing, ScanOptions
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.tar_index import TarIndex, TarRows, read_tar_index
from headrace.formats.tar_names import check_field, check_key
from headrace.formats.tar_scan import scan_tar
from headrace.formats.unpacking import codec_of, unpacked_head
from headrace.formats.ustar import BLOCK_BYTES, END, TarError, make_header, padded, parse_header
from headrace.formats.values import value_to_bytes
from headrace.storage import quoted

_NAMED = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_HEAD_BYTES = (4 << 10, 128 << 10, 1 << 20)
"""How much of a compressed file is looked at, in turn: bz2 gives nothing before a block, of up to 900 kB, is whole."""


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


def find_tars(listing: Listing, options: ScanOptions) -> Found | None:
    """The files of a folder that begin with a tar header, compressed or not, and all that are named like tars."""
    files = [name for name in listing.names if _NAMED.search(name) or _begins_tar(listing, name)]
    return Found(files) if files else None


def _begins_tar(listing: Listing, name: str) -> bool:
    head = listing.head(name, BLOCK_BYTES)
    if (codec := codec_of(head)) is None:
        return _is_header(head)
    for num_bytes in _HEAD_BYTES:
        head = listing.head(name, num_bytes)
        unpacked = unpacked_head(head, codec, BLOCK_BYTES)
        if unpacked or len(head) < num_bytes:
            return _is_header(unpacked)
    return False


def _is_header(block: bytes) -> bool:
    if len(block) < BLOCK_BYTES or not block.strip(b"\0"):
        return False
    try:
        parse_header(block)
    except TarError:
        return False
    return True


TAR = Format("tar", ".tar", find_tars, scan_tar, read_tar_index, encode_tar, TarWriter)
