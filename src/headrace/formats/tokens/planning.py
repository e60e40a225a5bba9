"""Which documents go together: into rows of a fixed number of tokens, or into padded batches within a budget of them.

It is planned from lengths alone, once. Documents are looked at in groups of neighbours, so that what goes together lies
together and is read together, and in a group those that fit best are put together; longer ones are cut. The order of
what was planned is shuffled within its group: the fullest rows do not come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from headrace.formats.columns import I64
from headrace.order import derive_key, permutation

GROUP_BINS = 256
"""Rows of a group. More are filled better (0.4 % are left empty here, 1.1 % with 64), and read from further apart."""


class Parts(NamedTuple):
    """Documents, or parts of long ones; arrays of one length."""

    document: I64
    """Number of the document in its shard."""
    first: I64
    """The part's first token in the document."""
    length: I64


class Bins(NamedTuple):
    """What goes together: bin k has the parts starts[k] to starts[k + 1] - 1, in the order of the documents."""

    starts: I64
    parts: Parts


def plan_rows(lengths: I64, row_tokens: int) -> Bins:
    """Rows of at most `row_tokens` tokens from documents of these lengths, each document or part of one in one row."""
    return _planned(lengths, row_tokens, _best_fit)


def plan_padded(lengths: I64, budget_tokens: int) -> Bins:
    """Batches of documents of much the same length: as many as fit a budget of tokens when all are as long as one."""
    return _planned(lengths, budget_tokens, _by_length)


def _planned(lengths: I64, capacity: int, plan: Callable[[I64, int], list[list[int]]]) -> Bins:
    counts: list[int] = []
    chosen: list[I64] = []
    parts = _cut(lengths, capacity)
    for number, (first, last) in enumerate(_groups(parts.length, capacity)):
        bins = plan(parts.length[first:last], capacity)
        for k in permutation(derive_key(capacity, number), len(bins)).tolist():
            counts.append(len(bins[k]))
            chosen.append(first + np.sort(np.array(bins[k], np.int64)))
    order = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    return Bins(np.cumsum([0, *counts], dtype=np.int64), Parts(*(column[order] for column in parts)))


def _cut(lengths: I64, most: int) -> Parts:
    """All documents; those of more than `most` tokens in parts of that many, and what is left. Empty ones are none."""
    num_parts = -(-lengths // most)
    document = np.repeat(np.arange(len(lengths)), num_parts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(num_parts) - num_parts, num_parts)
    first = number * most
    return Parts(document, first, np.minimum(lengths[document] - first, most))


def _groups(lengths: I64, capacity: int) -> Iterator[tuple[int, int]]:
    """Neighbours, as many as fill a group's bins."""
    upto = np.cumsum(lengths)
    first = 0
    while first < len(lengths):
        before = int(upto[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(upto, before + GROUP_BINS * capacity, side="right")))
        yield first, last
        first = last


def _best_fit(lengths: I64, capacity: int) -> list[list[int]]:
    """The longest first, each into the fullest bin that it fits into."""
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where some bin has room for r more: the smallest that suffices is found in one step
    for k in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[k])
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            number = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, number = capacity, len(bins)
            bins.append([])
        bins[number].append(k)
        if room > length:
            with_room[room - length].append(number)
            rooms |= 1 << (room - length)
    return bins


def _by_length(lengths: I64, capacity: int) -> list[list[int]]:
    """The shortest first, together while all, made as long as the last, fit."""
    bins: list[list[int]] = []
    for k in np.argsort(lengths, kind="stable").tolist():
        if bins and (len(bins[-1]) + 1) * int(lengths[k]) <= capacity:
            bins[-1].append(k)
        else:
            bins.append([k])
    return bins
