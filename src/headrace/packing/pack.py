"""`pack`: look through the source, say what is asked for, and write what is not there yet.

Samples are dealt into splits, and shuffled, by hashes of their keys. So both depend on nothing but the keys: the same
source gives the same shards on every machine, and a sample stays in its split when others are added.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt
import xxhash

from headrace.dataset import Dataset, is_dataset
from headrace.dataset import open as open_dataset
from headrace.errors import OptionError, SourceError, TargetError
from headrace.formats import MANIFEST_NAME, Manifest, get_written_format
from headrace.formats.columns import I64
from headrace.packing.folder import FolderSource
from headrace.packing.options import OnError, Options, Transform, usable_cpus
from headrace.packing.prepare import Preparer
from headrace.packing.repack import DatasetSource
from headrace.packing.source import Skipped, Source
from headrace.packing.spool import SpooledSource
from headrace.packing.target import SKIPPED_NAME, Target, check_usable, find_finished
from headrace.packing.writing import DatasetWriter
from headrace.storage import local_path, locate, parse_size, quoted, storage_refusals

SourceLike = str | os.PathLike[str] | Dataset | Iterable[Mapping[str, Any]]

_log = logging.getLogger("headrace.packing")
_FRACTION_STEPS = 2**53
_SHUFFLE = 0x9E3779B97F4A7C15  # keeps the hashes that shuffle apart from those that split, which have seed 0


class _Others(TypedDict, total=False):
    """The options that do not decide what `pack` returns."""

    format: str
    shard_size: int | str
    transform: Transform | None
    shuffle: bool
    seed: int
    workers: int | None
    resume: bool
    overwrite: bool
    on_error: OnError


@overload
def pack(
    source: SourceLike, target: str | os.PathLike[str], *, split: None = None, **others: Unpack[_Others]
) -> Manifest: ...


@overload
def pack(
    source: SourceLike, target: str | os.PathLike[str], *, split: Mapping[str, float], **others: Unpack[_Others]
) -> dict[str, Manifest]: ...


def pack(
    source: SourceLike,
    target: str | os.PathLike[str],
    *,
    format: str = "tar",
    shard_size: int | str = "64MiB",
    transform: Transform | None = None,
    split: Mapping[str, float] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    workers: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    on_error: OnError = "raise",
) -> Manifest | dict[str, Manifest]:
    """Pack a source into shards at `target`; returns the manifest, or with `split` a manifest for each name.

    source: a folder of files, an opened dataset or the path of one, or an iterable of dicts.
    format: `tar` or `tokens`.
    shard_size: bytes of a shard, as a number or like `64MiB`; exceeded only by a single larger sample.
    transform: function(sample dict) -> a dict, None to drop it, or a list of dicts, called from several threads. It
        must give the same result for the same sample. Items of a list that keep the sample's key get `/0`, `/1`, ...
        behind it.
    split: names and fractions that add up to 1, such as {"train": 0.9, "test": 0.1}. Samples are dealt by a hash of
        their key in the source, into datasets in folders of these names.
    shuffle, seed: the order of samples in the shards; without shuffling that of keys or of the iterable.
    workers: threads that read, transform and check; None is one a usable processor.
    resume: go on with a pack of the same source and options that was cut off; False starts it over.
    overwrite: replace a dataset that is there. Nothing but what headrace wrote is ever removed.
    on_error: what to do about a broken sample: "raise", or "skip" and list it in `headrace.skipped.jsonl`.

    Packing again with the same source and options does nothing. Raises OptionError, SourceError, TargetError,
    TransformError, StorageError or DatasetError; what has been written is kept to go on from, and does not open as a
    dataset before it is whole.
    """
    options = Options(
        format=get_written_format(format),
        shard_size=parse_size(shard_size, "shard_size"),
        transform=transform,
        split=split,
        shuffle=shuffle,
        seed=seed,
        workers=usable_cpus() if workers is None else workers,
        resume=resume,
        overwrite=overwrite,
        on_error=on_error,
    )
    folder = local_path(target)
    for name in split or [""]:
        _check_apart(source, folder / name)
        check_usable(folder / name)
    with closing(_open_source(source, folder, options)) as opened:
        if split is None:
            whole = _Part(None, folder, np.arange(len(opened.keys)), opened.skipped)
            return _pack_parts(opened, [whole], options)[0]
        parts = _deal(opened, folder, split)
        return dict(zip(split, _pack_parts(opened, parts, options), strict=True))


@dataclass(frozen=True, slots=True)
class _Part:
    """What of a source goes into one dataset."""

    name: str | None
    """Of the split."""
    folder: Path
    numbers: I64
    """Of the source's samples."""
    skipped: Sequence[Skipped]


def _open_source(source: SourceLike, target: Path, options: Options) -> Source:
    preparer = Preparer(options.format, options.transform)
    if isinstance(source, str | os.PathLike):
        path = local_path(source)
        if is_dataset(locate(path)):
            dataset = open_dataset(path)
            _say_what_is_left_out(path, dataset)
            return DatasetSource(dataset, preparer)
        return FolderSource(path, preparer, options.on_error)
    if isinstance(source, Dataset):
        return DatasetSource(source, preparer)
    if isinstance(source, Iterable) and not isinstance(source, Mapping | bytes | bytearray):
        return SpooledSource(source, preparer, target, options.workers, options.on_error)
    raise OptionError(
        f"a source is a folder, a dataset or an iterable of dicts: got {type(source).__name__}; for arrays and tables "
        "give an iterable of dicts"
    )


def _say_what_is_left_out(folder: Path, dataset: Dataset) -> None:
    # A folder of files that holds a tar by chance is taken for an ordinary dataset: nobody should miss that.
    if (folder / MANIFEST_NAME).exists():
        return
    shards = list(dataset.manifest.shards.file)
    others = sorted(path.name for path in folder.iterdir() if path.name not in shards and path.name[0] != ".")
    if others:
        more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
        shown = ", ".join(map(quoted, others[:3])) + more
        _log.warning("%s is packed as a dataset of shards (%s, ...); passed over: %s", quoted(folder), shards[0], shown)


def _check_apart(source: SourceLike, target: Path) -> None:
    if isinstance(source, Dataset):
        source = source.url
    if not isinstance(source, str | os.PathLike):
        return
    source = local_path(source)
    with storage_refusals("find", target):  # what a relative path is relative to may be gone
        inner, outer = Path(os.path.realpath(target)), Path(os.path.realpath(source))
    if inner == outer or outer in inner.parents:
        raise TargetError(
            f"the target {quoted(target)} lies inside the source {quoted(source)}, and would be packed with it: "
            "choose a place outside"
        )


def _deal(source: Source, folder: Path, split: Mapping[str, float]) -> list[_Part]:
    """The parts of a split. Raises SourceError if one would be empty."""
    bounds = np.cumsum([*split.values()])
    bounds[-1] = 1.0  # whatever the sum's last bits are, every hash is below it
    dealt = _parts_of(source.keys, bounds)
    skipped = _parts_of([skipped.key for skipped in source.skipped], bounds)
    parts = []
    for number, name in enumerate(split):
        numbers = np.flatnonzero(dealt == number)
        if not len(numbers):
            raise SourceError(
                f"split {name!r} would be empty: none of {len(source.keys)} samples has its hash there; give more "
                "samples or a larger fraction"
            )
        passed = [source.skipped[at] for at in np.flatnonzero(skipped == number).tolist()]
        parts.append(_Part(name, folder / name, numbers, passed))
    return parts


def _parts_of(keys: Sequence[str], bounds: npt.NDArray[np.float64]) -> I64:
    """For each key the number of the part whose range of hashes it falls in, hashes being fractions of all."""
    # 53 bits: what a float holds, so that no hash rounds up to 1.
    fractions = np.array([(_key_hash(key) >> 11) / _FRACTION_STEPS for key in keys], np.float64)
    return np.searchsorted(bounds, fractions, side="right").astype(np.int64)


def _key_hash(key: str) -> int:
    # Keys of broken names may hold what is not UTF-8.
    return xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))


def _pack_parts(source: Source, parts: Sequence[_Part], options: Options) -> list[Manifest]:
    requests = [options.request(source.identity, part.name) for part in parts]
    found = [find_finished(part.folder, request, options) for part, request in zip(parts, requests, strict=True)]
    if any(found):
        _log.info("nothing to do where the same has been packed before")
    with ExitStack() as stack:
        # All are marked as unfinished before the first is written: else a new training set might meet an old test set.
        targets = [
            None if manifest else stack.enter_context(closing(Target(part.folder, request, options)))
            for part, request, manifest in zip(parts, requests, found, strict=True)
        ]
        return [
            manifest or _pack_part(source, part, target, request, options)
            for part, target, request, manifest in zip(parts, targets, requests, found, strict=True)
        ]


def _pack_part(source: Source, part: _Part, target: Target | None, request: str, options: Options) -> Manifest:
    assert target is not None
    if target.finished is not None:
        return target.finished
    order = _shuffled(source.keys, part.numbers, options.seed) if options.shuffle else part.numbers
    title = "packing" if part.name is None else f"packing {part.name}"
    manifest = DatasetWriter(target, source, part.skipped, order, options).write(request, title)
    if manifest.skipped:
        _log.warning("%s broken samples were skipped: see %s", f"{manifest.skipped:,}", part.folder / SKIPPED_NAME)
    return manifest


def _shuffled(keys: Sequence[str], numbers: I64, seed: int) -> I64:
    """The samples in the order of hashes of their keys."""
    seed = (seed ^ _SHUFFLE) % 2**64
    hashes = np.array([xxhash.xxh3_64_intdigest(keys[i].encode(), seed) for i in numbers], np.uint64)
    return numbers[np.argsort(hashes, kind="stable")]
