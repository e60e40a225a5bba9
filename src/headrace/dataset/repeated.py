"""Keys that several samples of a dataset have, found among those whose keys have the same hash."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import DatasetError
from headrace.formats import get_format
from headrace.formats.columns import U64
from headrace.formats.key_runs import shared_hashes
from headrace.storage import quoted

if TYPE_CHECKING:
    from headrace.dataset.dataset import Dataset

MOST_NAMED = 100
"""Repeated keys that are named; where a column is no key at all the first hundred say enough."""


class Repeated(NamedTuple):
    """A key, and the numbers of the first two samples that have it."""

    key: str
    first: int
    second: int


def repeated_keys(dataset: Dataset) -> Iterator[str]:
    """Every key that several samples have, one line each, in storage order; all indexes are read.

    Of more than 100 the others are counted.
    """
    if get_format(dataset.manifest.format).shards_share_keys:
        return
    named: list[Repeated] = []
    num_others = 0
    hashes = (dataset.piece(k).key_hashes() for k in range(len(dataset.pieces)))
    for numbers in shared_hashes(hashes, Path(tempfile.gettempdir())):
        for repeated in _repeated(dataset, numbers):
            if len(named) < MOST_NAMED:
                named.append(repeated)
            else:
                num_others += 1
    for repeated in sorted(named, key=lambda one: one.first):
        yield _said(dataset, repeated)
    if num_others:
        yield f"{num_others:,} more keys are there twice"


def refuse_repeated(dataset: Dataset) -> Callable[[U64], None] | None:
    """What raises DatasetError if some of the samples of these numbers have one key; None where they may."""
    if get_format(dataset.manifest.format).shards_share_keys:
        return None

    def check(numbers: U64) -> None:
        for repeated in _repeated(dataset, numbers):
            raise DatasetError(
                f"{_said(dataset, repeated)}; give every sample a `__key__` of its own, or pack the dataset without "
                "those that come again (headrace pack --on-error skip)"
            )

    return check


def _repeated(dataset: Dataset, numbers: U64) -> Iterator[Repeated]:
    """The keys that several of the samples have."""
    found: dict[str, int | None] = {}
    for number in map(int, numbers):
        piece, i = dataset.pieces.find(number)
        key = dataset.piece(piece).key(i)
        first = found.setdefault(key, number)
        if first is not None and first != number:
            found[key] = None  # it is said once
            yield Repeated(key, first, number)


def _said(dataset: Dataset, repeated: Repeated) -> str:
    places = " and ".join(_place(dataset, number) for number in (repeated.first, repeated.second))
    return f"the key {quoted(repeated.key)} is there twice: as {places}"


def _place(dataset: Dataset, number: int) -> str:
    """Where a sample lies, for people: shard, and number in it from 0."""
    shard = dataset.pieces.place(dataset.pieces.find(number)[0])[0]
    first = int(dataset.manifest.shards.samples[:shard].sum())
    return f"sample {number - first:,} of {quoted(dataset.shard_name(shard))}"
