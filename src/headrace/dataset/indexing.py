"""Adopting an ordinary dataset: what one reading of its shards finds is kept beside them, or elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from headrace.dataset.dataset import Dataset
from headrace.dataset.kept_indexes import KeptIndexes
from headrace.dataset.lookup import save_keys
from headrace.dataset.opening import find_ordinary
from headrace.dataset.ordinary import Gathered, Ordinary
from headrace.dataset.repeated import refuse_repeated
from headrace.dataset.shard_files import ShardFiles, lasting, shown
from headrace.errors import StorageError, TargetError
from headrace.formats import INDEX_SUFFIX, MANIFEST_NAME, Manifest, ScanOptions
from headrace.storage import Place, exists, list_folder, locate, open_file, quoted, write_bytes
from headrace.telemetry import progress

_ARROW = b"ARROW1"
"""What our index files begin with."""


def index(
    url: str | os.PathLike[str], *, dtype: str | None = None, target: str | os.PathLike[str] | None = None
) -> Manifest:
    """Write a manifest and indexes beside the shards of an ordinary dataset, which stay as they are.

    url: a folder or prefix, or files by braces, as for `headrace.open`. Each shard is read through once.
    dtype: the type of bare token files, uint16 or uint32; None takes it from names like `tokens.uint16.bin`.
    target: a folder for manifest and indexes where the shards' own takes no files; it is then what is opened.

    From then on the dataset opens at once and its bytes are verified. Raises TargetError if there is a manifest
    already, DatasetError if two samples have the same key (of tars: two of one shard), and what `headrace.open` raises
    for what is no dataset.
    """
    ordinary = find_ordinary(url, ScanOptions(dtype=dtype))
    if isinstance(ordinary, Dataset):
        raise TargetError(f"{quoted(shown(url))} has a manifest already: delete its {MANIFEST_NAME} to index it again")
    home = ordinary.folder if target is None else lasting(locate(target))
    if exists(home / MANIFEST_NAME):
        raise TargetError(f"{home} holds a manifest already: choose another target")
    _check_replaceable(home, ordinary.found.files)
    files = ShardFiles(shown(url), home, ordinary.folder)
    shards_url = None if target is None else ordinary.folder.text
    with _kept_indexes(home, ordinary) as kept:
        manifest = replace(_scanned(ordinary, kept), shards_url=shards_url)
        scanned = Dataset(files, manifest, ordinary.options.max_sample_bytes, kept.opened(manifest))
        save_keys(home, manifest, kept.key_hashes(), refuse_repeated(scanned))  # first, as it may refuse
        for name, content in zip(manifest.shards.file, kept.contents(), strict=True):
            write_bytes(files.index_place(name), content)
    write_bytes(files.manifest_place, manifest.to_bytes())
    return manifest


def _kept_indexes(home: Place, ordinary: Ordinary) -> KeptIndexes:
    try:
        return KeptIndexes(home, ordinary.format)
    except StorageError as err:
        raise StorageError(f"{err}; manifest and indexes may lie in another folder (target, --target)") from err


def _scanned(ordinary: Ordinary, kept: KeptIndexes) -> Manifest:
    """The manifest of all shards, each read through once; nothing lies beside them yet, should they not go together."""
    gathered = Gathered(ordinary)
    with progress("indexing", len(ordinary.found.files), "shards") as advance:
        for shard_index, row in ordinary.scan():
            gathered.add(shard_index, replace(row, index_xxh3_128=kept.add(shard_index)))
            advance(1, row.file)
    return gathered.manifest()


def _check_replaceable(home: Place, shards: Sequence[str]) -> None:
    """Raise TargetError if an index would be written over another tool's file of that name, such as DALI's."""
    names = {f"{name}{INDEX_SUFFIX}" for name in shards}
    try:
        there = [entry.name for entry in list_folder(home) if entry.name in names]
    except StorageError:  # a store that cannot list, as plain http, takes no files either
        return
    for name in there:
        with open_file(home / name) as file:
            head = bytes(file.read(0, min(len(_ARROW), file.size)))
        if head != _ARROW:
            raise TargetError(
                f"{home / name} is an index of another tool, and would be written over: give another folder for ours "
                "(target, --target)"
            )
