"""Verification: every byte of every shard against what manifest and indexes say, and everything that is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import xxhash

from headrace.errors import HeadraceError
from headrace.formats import get_format
from headrace.formats.index import PIECE_BYTES, StoredIndex
from headrace.storage import File, quoted, read_bytes

if TYPE_CHECKING:
    from headrace.dataset.dataset import Dataset

_MAX_NAMED = 100
"""Damaged samples of one shard that are named; of a shard that is all wrong the first hundred say enough."""


def find_damage(dataset: Dataset, progress: Callable[..., None] | None = None) -> list[str]:
    """What is wrong with the dataset, in the order of its shards; see `Dataset.verify`."""

    def check(k: int) -> list[str]:
        errors = list(_check_shard(dataset, k))
        if progress is not None:
            progress(int(dataset.manifest.shards.samples[k]))
        return errors

    # Reading and hashing of large pieces release the interpreter lock; more threads than processors gain nothing.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        errors = [error for errors in pool.map(check, range(len(dataset.manifest.shards))) for error in errors]
    beside = () if errors else _wrong_beside(dataset)  # it is made of the shards, which must be sound for that
    return [*errors, *beside, *_extra_shards(dataset), *dataset.keys_damage()]


def _wrong_beside(dataset: Dataset) -> Iterator[str]:
    """Files for the format's own readers, such as the `index.json` of MDS, that are not what was written."""
    manifest, format_ = dataset.manifest, get_format(dataset.manifest.format)
    if manifest.request is None or format_.finish is None:
        return  # of a dataset that was only indexed they are another tool's
    rows = [manifest.shards.row(k) for k in range(len(manifest.shards))]
    for name, content in format_.finish(dataset.home, rows).items():
        place = dataset.home / name
        try:
            if read_bytes(place) != content:
                yield f"{place} is not what was written, and other readers go by it: restore it, or pack again"
        except HeadraceError as err:
            yield str(err)


def _extra_shards(dataset: Dataset) -> Iterator[str]:
    """Files that other readers would take for shards of a packed dataset, and that its manifest does not name."""
    if dataset.manifest.request is None:
        return  # a dataset that was only indexed may be some of the files of a folder
    known = set(dataset.manifest.shards.file)
    suffix = get_format(dataset.manifest.format).suffix
    for name in dataset.list_files():
        if name.endswith(suffix) and name not in known:
            yield f"{quoted(name)} is not in the manifest of {quoted(dataset.url)}: move it away, or pack again"


def _check_shard(dataset: Dataset, k: int) -> Iterator[str]:
    index = None
    try:
        index = dataset.stored_index(k)
    except HeadraceError as err:
        yield str(err)
    try:
        with dataset.open_shard(k) as file:
            yield from _check_file(dataset, k, file, index)
    except HeadraceError as err:
        yield str(err)


def _check_file(dataset: Dataset, k: int, file: File, index: StoredIndex | None) -> Iterator[str]:
    shards = dataset.manifest.shards
    size, expected = file.size, int(shards.bytes[k])
    name = file.name
    if size != expected:
        what = "is cut short" if size < expected else "has bytes too many"
        yield f"{name} {what}: {expected:,} bytes expected, {size:,} found; restore it"
    digest = _digest(file, size)
    if digest != shards.xxh3_128[k]:
        yield f"{name} is damaged: its checksum is {digest}, not {shards.xxh3_128[k]}; restore it"
    if index is not None:
        yield from _check_samples(name, file, index, size)


def _digest(file: File, size: int) -> str:
    digest, buffer = xxhash.xxh3_128(), bytearray(min(size, PIECE_BYTES))
    for at in range(0, size, PIECE_BYTES):
        chunk = memoryview(buffer)[: min(PIECE_BYTES, size - at)]
        file.read_into(at, chunk)
        digest.update(chunk)
    return digest.hexdigest()


def _check_samples(name: str, file: File, index: StoredIndex, size: int) -> Iterator[str]:
    num_damaged = 0
    for i, reason in index.all_damage(file.read, size):
        num_damaged += 1
        if num_damaged <= _MAX_NAMED:
            yield f"{name}: sample {quoted(index.key(i))} is damaged: {reason}"
    if num_damaged > _MAX_NAMED:
        yield f"{name}: {num_damaged - _MAX_NAMED:,} more samples are damaged"
