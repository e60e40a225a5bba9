"""`index.json`, in which MDS keeps what its shards are: read with suspicion, and written for other readers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from headrace.errors import DatasetError
from headrace.formats.checking import Checked
from headrace.formats.format import Found, Listing, ScanOptions
from headrace.formats.mds.compression import MAX_SHARD_BYTES
from headrace.formats.shards import Shard
from headrace.storage import write_file

INDEX_NAME = "index.json"
SUFFIX = ".mds"
VERSION = 2
HASH = "xxh3_128"
"""What shards that are written have in `index.json`; the manifest has it of every shard anyway."""

_MEMBERS = 20


@dataclass(frozen=True, slots=True)
class Listed:
    """What `index.json` says of one shard and of the file in which it lies here."""

    columns: tuple[tuple[str, str], ...]
    """Name and encoding of each."""
    samples: int
    num_bytes: int
    """Length of the file."""
    hashes: Mapping[str, str]
    """Hex digests of the file by the name of the hash."""
    compression: str | None
    """None: the file is the plain shard."""
    raw_bytes: int
    """Length of the shard when it is unpacked."""
    raw_hashes: Mapping[str, str]


def find_mds(listing: Listing, options: ScanOptions) -> Found | None:
    """The shards that a folder's `index.json` lists, also in folders below; without it, plain shards by their suffix.

    Of a shard that is there both plain and compressed the plain one is taken. Raises ManifestError if `index.json` is
    malformed, DatasetError if it is of another version.
    """
    plain = [name for name in listing.names if name.endswith(SUFFIX)]
    if INDEX_NAME not in listing.names and not any(SUFFIX in name for name in listing.names):
        return None
    index = _read_index(listing)
    if index is None:
        shards = [name for name in plain if _may_be_shard(listing.head(name))]
        return Found(shards) if shards else None
    found = list(_listed(index, listing))
    if INDEX_NAME not in listing.names:  # single files were asked for
        found = [(name, listed) for name, listed in found if name in set(listing.names)]
    if len({name for name, _ in found}) != len(found):
        raise index["shards"].error("must name every shard once")
    return Found([name for name, _ in found], [{"listed": listed} for _, listed in found]) if found else None
