"""Every sample of a dataset in storage order, by large reads; and what is found out by looking at each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.dataset.reading import open_run
from headrace.errors import DamagedError, OptionError
from headrace.formats import Opened, ShardIndex
from headrace.formats.columns import I64
from headrace.storage import File, quoted
from headrace.telemetry import progress

if TYPE_CHECKING:
    from headrace.dataset.dataset import Dataset


def in_order(dataset: Dataset) -> Iterator[tuple[str, dict[str, Any] | DamagedError]]:
    """The key of every sample, and the sample or what is wrong with it."""
    for piece in range(len(dataset.pieces)):
        index, shard = dataset.piece(piece), dataset.pieces.place(piece)[0]
        try:
            file = dataset.open_shard(shard)
        except DamagedError as err:
            yield from ((index.key(i), err) for i in range(index.num_samples))
            continue
        with file:
            yield from _in_piece(file, index)


def _in_piece(file: File, index: ShardIndex) -> Iterator[tuple[str, dict[str, Any] | DamagedError]]:
    # What a network may have garbled is read once more, as a whole.
    forward = None if file.is_remote else index.forward(file.read, file.size)
    for first, last, opened in _run_by_run(file, index) if forward is None else forward:
        if isinstance(opened, DamagedError):
            yield from ((index.key(i), opened) for i in range(first, last))
            continue
        for i in range(first, last):
            if i in opened.damage:
                where = f"sample {quoted(index.key(i))} of {file.name}"
                yield index.key(i), DamagedError(f"{where} is damaged: {opened.damage[i]}")
            else:
                yield index.key(i), opened.sample(i)


def _run_by_run(file: File, index: ShardIndex) -> Iterator[tuple[int, int, Opened | DamagedError]]:
    for first, last in index.runs():
        try:
            yield first, last, open_run(file, index, first, last)
        except DamagedError as err:
            yield first, last, err


def matching(dataset: Dataset, predicate: Callable[[dict[str, Any]], Any]) -> I64:
    """The numbers of the samples for which the predicate is true. Raises DamagedError."""
    return np.array([number for number, sample in _numbered(dataset, "selecting") if predicate(sample)], np.int64)


def groups_of(dataset: Dataset, field: str) -> dict[Any, I64]:
    """The numbers of the samples of each value of a field, in the order of the values.

    Raises DamagedError; OptionError for values that are no numbers, text or short bytes.
    """
    groups: dict[Any, list[int]] = {}
    for number, sample in _numbered(dataset, f"reading {field}"):
        groups.setdefault(_value_of(sample, field), []).append(number)
    try:
        ordered = sorted(groups)
    except TypeError:  # None among others, or text among numbers
        ordered = sorted(groups, key=repr)
    return {value: np.array(groups[value], np.int64) for value in ordered}


def _numbered(dataset: Dataset, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with progress(what, len(dataset), "samples") as advance:
        for number, (_, sample) in enumerate(in_order(dataset)):
            if isinstance(sample, DamagedError):
                raise sample
            yield number, sample
            advance(1)


def _value_of(sample: dict[str, Any], field: str) -> Any:
    """The value by which samples are grouped: bytes as the number or text that they hold."""
    value = sample.get(field)
    if isinstance(value, memoryview | bytes):
        try:
            value = str(value, "utf-8").strip()
        except UnicodeDecodeError:
            value = object()
        else:
            value = int(value) if value.lstrip("-").isdecimal() else value
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise OptionError(
        f"samples are grouped by a field of numbers or text: {field!r} of sample {quoted(sample['__key__'])} is "
        f"{type(sample[field]).__name__}"
    )
