"""Spans of time, as pairs (begin, end), and how much of them is covered by others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[float, float]


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time as disjoint spans, in order."""
    merged: list[list[float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        elif end > begin:
            merged.append([begin, end])
    return [(begin, end) for begin, end in merged]


def common(one: Sequence[Span], other: Sequence[Span]) -> Iterator[Span]:
    """What lies in both; each disjoint and in order, as the result is."""
    at = 0
    for begin, end in one:
        while at < len(other) and other[at][1] <= begin:
            at += 1
        look = at
        while look < len(other) and other[look][0] < end:
            yield max(begin, other[look][0]), min(end, other[look][1])
            look += 1


def without(one: Sequence[Span], other: Sequence[Span]) -> Iterator[Span]:
    """What lies in the first and not in the second; each disjoint and in order, as the result is."""
    at = 0
    for begin, end in one:
        while at < len(other) and other[at][1] <= begin:
            at += 1
        look = at
        while look < len(other) and other[look][0] < end:
            if other[look][0] > begin:
                yield begin, other[look][0]
            begin = other[look][1]
            look += 1
        if begin < end:
            yield begin, end


def length(spans: Iterable[Span]) -> float:
    """How long they are together."""
    return sum(end - begin for begin, end in spans)
