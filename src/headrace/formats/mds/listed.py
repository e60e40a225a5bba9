"""`index.json`, in which MDS keeps what its shards are: read with suspicion, and written for other readers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.errors import DatasetError, ManifestError
from headrace.formats.checking import Checked
from headrace.formats.format import Found, Listing, ScanOptions
from headrace.formats.mds.compression import MAX_SHARD_BYTES
from headrace.formats.shards import Shard
from headrace.storage import Place, open_file

INDEX_NAME = "index.json"
SUFFIX = ".mds"
VERSION = 2
HASH = "xxh3_128"
"""What shards that are written have in `index.json`; the manifest has it of every shard anyway."""

_HEAD_BYTES = 12


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
    if INDEX_NAME not in listing.names and not any(SUFFIX in name for name in listing.names):
        return None
    index = _read_index(listing)
    if index is None:
        shards = [name for name in listing.names if name.endswith(SUFFIX) and _may_be_shard(listing.head(name))]
        return Found(shards) if shards else None
    names = set(listing.names)
    found = list(_listed(index, listing, names))
    if INDEX_NAME not in names:  # single files were asked for
        found = [(name, listed) for name, listed in found if name in names]
    if len({name for name, _ in found}) != len(found):
        raise index["shards"].error("must name every shard once")
    return Found([name for name, _ in found], [{"listed": listed} for _, listed in found]) if found else None


def make_index(place: Place, shards: Sequence[Shard]) -> Mapping[str, bytes]:
    """The `index.json` of finished shards, which all have the columns of the first."""
    config = _config(place / shards[0].file) if shards else {}
    rows = [
        config
        | {
            "raw_data": {"basename": row.file, "bytes": row.bytes, "hashes": {HASH: row.xxh3_128}},
            "samples": row.samples,
            "zip_data": None,
        }
        for row in shards
    ]
    content = json.dumps({"shards": rows, "version": VERSION}, sort_keys=True)
    return {INDEX_NAME: content.encode()}


def config_of(columns: Sequence[tuple[str, str, int | None]]) -> bytes:
    """What a shard that is written says of itself: name, encoding and size of each column."""
    names, encodings, sizes = zip(*columns, strict=True)
    config = {
        "version": VERSION,
        "format": "mds",
        "compression": None,
        "hashes": [HASH],
        "size_limit": None,
        "column_names": names,
        "column_encodings": encodings,
        "column_sizes": sizes,
    }
    return json.dumps(config, sort_keys=True).encode()


def _config(shard: Place) -> dict[str, Any]:
    with open_file(shard) as file:
        num_samples, begin = struct.unpack("<II", file.read(0, 8))
        at = 4 * (num_samples + 2)
        config: dict[str, Any] = orjson.loads(file.read(at, begin - at))
    return config


def _read_index(listing: Listing) -> Checked | None:
    """The content of `index.json` if it is that of MDS, and not of another format that has a file of this name."""
    try:
        data = listing.read(INDEX_NAME)
    except FileNotFoundError:
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as err:
        if not any(SUFFIX in name for name in listing.names):
            return None
        raise ManifestError(
            f"{INDEX_NAME} is not valid JSON ({err}): restore it, or delete it to read plain shards"
        ) from err
    rows = value.get("shards") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not any(isinstance(row, dict) and row.get("format") == "mds" for row in rows):
        return None
    index = Checked(value, INDEX_NAME)
    _check_version(index)
    return index


def _check_version(value: Checked) -> None:
    version = value["version"].integer()
    if version != VERSION:
        raise DatasetError(f"{value.where} is of version {version} of MDS: this release reads version {VERSION}")


def _listed(index: Checked, listing: Listing, names: set[str]) -> Iterator[tuple[str, Listed]]:
    """Each shard: its file, and what is said of it."""
    known: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}  # so that a million shards share one
    for row in index["shards"].elements():
        _check_version(row)
        if row["format"].value != "mds":
            raise row["format"].error("must be 'mds' like that of other shards")
        columns = _columns(row)
        columns = known.setdefault(columns, columns)
        compression = row.get("compression").optional(Checked.text) or None
        raw, packed = row["raw_data"], row.get("zip_data")
        file = raw
        if compression is not None and packed.value is not None and not _is_there(raw, listing, names):
            file = packed
        elif compression is not None:
            compression = None
        listed = Listed(
            columns,
            row["samples"].integer(),
            _num_bytes(file),
            _hashes(file),
            compression,
            _num_bytes(raw),
            _hashes(raw),
        )
        yield file["basename"].file_name(), listed


def _columns(row: Checked) -> tuple[tuple[str, str], ...]:
    names, encodings = ([item.text() for item in row[f"column_{what}"].elements()] for what in ("names", "encodings"))
    if len(names) != len(encodings):
        raise row["column_encodings"].error(f"must be as many as the {len(names)} column_names")
    return tuple(zip(names, encodings, strict=True))


def _is_there(file: Checked, listing: Listing, names: set[str]) -> bool:
    name = file["basename"].file_name()
    if "/" not in name:
        return name in names
    try:
        listing.size(name)
    except FileNotFoundError:
        return False
    return True


def _num_bytes(file: Checked) -> int:
    num_bytes = file["bytes"].integer()
    if num_bytes > MAX_SHARD_BYTES:
        raise file["bytes"].error(f"must be at most {MAX_SHARD_BYTES:,}")
    return num_bytes


def _hashes(file: Checked) -> dict[str, str]:
    return {algorithm: digest.text() for algorithm, digest in file.get("hashes").items()}


def _may_be_shard(head: bytes) -> bool:
    """Whether this can be a number of samples, and a first sample that begins behind the table of them all."""
    if len(head) < _HEAD_BYTES:
        return False
    num_samples, begin = struct.unpack_from("<II", head)
    return bool(begin > 4 * (num_samples + 2))
