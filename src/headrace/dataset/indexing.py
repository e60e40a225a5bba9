"""Adopting an ordinary dataset: what one reading of its shards finds is kept beside them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import xxhash

from headrace.dataset.opening import check_finished, manifest_of, ordinary_shards, with_index_digest
from headrace.errors import TargetError
from headrace.formats import INDEX_SUFFIX, MANIFEST_NAME, Manifest, Shards
from headrace.formats.index import StoredIndex
from headrace.storage import local_path, quoted, write_file
from headrace.telemetry import progress


def index(url: str | os.PathLike[str], *, dtype: str | None = None) -> Manifest:
    """Write a manifest and an index a shard into a folder of tar shards or token files; the shards stay as they are.

    `dtype` is the type of bare token files, uint16 or uint32; None takes it from names like `tokens.uint16.bin`. From
    then on the folder opens at once and its bytes are verified.

    Raises TargetError if there is a manifest already, and what `headrace.open` raises for folders that are no dataset.
    """
    folder = local_path(url)
    check_finished(folder)
    if (folder / MANIFEST_NAME).exists():
        raise TargetError(f"{quoted(folder)} has a manifest already: delete its {MANIFEST_NAME} to index it again")
    paths, format_ = ordinary_shards(folder, dtype)
    found = []
    with progress("indexing", len(paths), "shards") as advance:
        for path in paths:
            found.append(format_.scan(path, dtype))
            advance(1, path.name)
    manifest = manifest_of(format_, found)  # so nothing is written beside shards that do not go together
    rows = [
        with_index_digest(row, _write_index(path, shard_index))
        for path, (shard_index, row) in zip(paths, found, strict=True)
    ]
    manifest = replace(manifest, shards=Shards.of(rows))
    manifest.write(folder)
    return manifest


def _write_index(shard: Path, index: StoredIndex) -> str:
    """Write the index beside its shard; returns its checksum."""
    content = index.to_file()
    write_file(shard.with_name(shard.name + INDEX_SUFFIX), content)
    return xxhash.xxh3_128_hexdigest(content)
