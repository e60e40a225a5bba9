"""Some samples of a piece as a piece of their own."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from headrace.formats import Opened, ShardIndex
from headrace.formats.columns import I64, U64
from headrace.formats.index import Range

GAP_BYTES = 64 << 10
"""What may lie between two samples that are read in one go: reading it costs less than asking twice."""


class _Stretch(NamedTuple):
    """Samples that are read in one go, with what lies between them, numbered in the piece."""

    first: int
    last: int
    num_bytes: int


class SomeSamples(ShardIndex):
    """A piece's samples of these numbers, ascending. What lies between them is read where that is little."""

    def __init__(self, piece: ShardIndex, numbers: I64) -> None:
        self.shard_bytes, self.is_ranged = piece.shard_bytes, piece.is_ranged
        self._piece, self._numbers = piece, numbers

    @property
    def num_samples(self) -> int:
        return len(self._numbers)

    @property
    def nbytes(self) -> int:
        return int(self._numbers.nbytes)

    @property
    def sample_bytes(self) -> I64:
        return self._piece.sample_bytes[self._numbers]

    def key(self, i: int) -> str:
        return self._piece.key(int(self._numbers[i]))

    def key_hashes(self) -> U64:
        return self._piece.key_hashes()[self._numbers]

    def extent(self, first: int, last: int) -> tuple[int, int]:
        ranges = self.ranges(first, last)
        if not ranges:
            return 0, 0
        start = min(part.offset for part in ranges)
        return start, max(part.end for part in ranges) - start

    def ranges(self, first: int, last: int) -> Sequence[Range]:
        if not self.is_ranged:
            return self._piece.ranges(0, self._piece.num_samples) if first < last else []
        return [part for stretch in self._stretches(first, last) for part in self._piece.ranges(*stretch[:2])]

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        numbers = self._numbers[first:last].tolist()
        if not self.is_ranged:
            whole = self._piece.open(0, self._piece.num_samples, data) if first < last else None
            return _OpenedSome([whole] if whole else [], [0], numbers, first)
        opened, at = [], 0
        stretches = self._stretches(first, last)
        for begin, end, num_bytes in stretches:
            opened.append(self._piece.open(begin, end, data[at : at + num_bytes]))
            at += num_bytes
        return _OpenedSome(opened, [stretch.first for stretch in stretches], numbers, first)

    def _stretches(self, first: int, last: int) -> list[_Stretch]:
        """The samples first .. last-1 with the stretches of the piece that they are read by."""
        found: list[tuple[int, int]] = []
        end = 0
        for number in self._numbers[first:last].tolist():
            offset, length = self._piece.extent(number, number + 1)
            if found and offset - end <= GAP_BYTES:
                found[-1] = (found[-1][0], number + 1)
            else:
                found.append((number, number + 1))
            end = offset + length
        return [_Stretch(*pair, sum(part.length for part in self._piece.ranges(*pair))) for pair in found]


class _OpenedSome(Opened):
    """Samples out of the stretches that were read."""

    def __init__(self, opened: Sequence[Opened], starts: Sequence[int], numbers: Sequence[int], first: int) -> None:
        """`starts` are the first samples of the stretches, `numbers` those of the samples, all in the piece."""
        self._opened, self._starts, self._numbers, self._first = opened, starts, numbers, first
        self.num_bytes = sum(one.num_bytes for one in opened)
        damage = {number: reason for one in opened for number, reason in one.damage.items()}
        self.damage = {i: damage[number] for i, number in enumerate(numbers, first) if number in damage}

    def sample(self, i: int) -> dict[str, Any]:
        number = self._numbers[i - self._first]
        return self._opened[bisect_right(self._starts, number) - 1].sample(number)
