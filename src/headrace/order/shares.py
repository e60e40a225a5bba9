"""Shares: how the positions of an epoch are dealt to several readers of a rank, each of which reads by itself.

A rank's partitions go round its readers: reader k of n takes the rank's partitions k, k + n, k + 2n and so on, whole,
so no byte is read by two. Without shuffling there is one partition, and reader k takes every n-th position of the rank.
Of an epoch's end fewer samples than there are ranks are dropped, so that every rank has equally many, and reader k of
one rank as many as reader k of any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from headrace.errors import OptionError
from headrace.order.epoch import EpochOrder, Order, Run
from headrace.order.keyed import I64
from headrace.order.mixture import MixedEpoch, MixedOrder


@dataclass(frozen=True)
class Share:
    """What one reader takes of each epoch, in the order of positions."""

    order: Order | MixedOrder
    rank: int
    world_size: int
    reader: int
    num_readers: int

    @property
    def num_samples(self) -> int:
        """Samples of an epoch that this reader takes: the same on every rank."""
        rounds, rest = divmod(self._stop, self._stride)
        return rounds * len(self._members) + len(range(self._first, rest, self._step))

    @property
    def num_open(self) -> int:
        """Partitions that are read side by side."""
        return len(self._members) if self.order.shuffle else 1

    def positions(self, first: int, last: int) -> I64:
        """The epoch's positions of this reader's samples first to last - 1."""
        number = np.arange(first, last, dtype=np.int64)
        members = np.array(self._members, np.int64)
        positions: I64 = number // len(members) * self._stride + members[number % len(members)]
        return positions

    def runs(self, epoch: EpochOrder | MixedEpoch, first: int) -> Iterator[Run]:
        """The runs that hold this reader's samples from number `first` on, in the order of first need."""
        if first >= self.num_samples:
            return iter(())
        start = int(self.positions(first, first + 1)[0])
        return epoch.runs(self._first, self._step, start, self._stop)

    @cached_property
    def _members(self) -> range:
        """Of each `_stride` positions those that are this reader's."""
        return range(self._first, self._stride, self._step)

    @property
    def _first(self) -> int:
        return self.rank + self.world_size * self.reader

    @property
    def _step(self) -> int:
        return self.world_size * self.num_readers

    @property
    def _stride(self) -> int:
        return self.order.partitions if self.order.shuffle else self._step

    @property
    def _stop(self) -> int:
        return self.order.num_samples - self.order.num_samples % self.world_size


def dealt(turns: int, limits: Sequence[int | float]) -> tuple[list[int], int]:
    """How many of `turns` turns each reader has had, going round, and who is next; each leaves after its limit.

    Raises OptionError for more turns than there are.
    """
    had, left = [0] * len(limits), turns
    while waiting := [reader for reader, limit in enumerate(limits) if had[reader] < limit]:
        rounds = int(min(left // len(waiting), *(limits[reader] - had[reader] for reader in waiting)))
        if rounds == 0:
            for reader in waiting[:left]:
                had[reader] += 1
            return had, waiting[left]
        for reader in waiting:
            had[reader] += rounds
        left -= rounds * len(waiting)
    if left:
        raise OptionError(f"batches must be at most those of an iteration, {turns - left:,}: got {turns:,}")
    return had, 0
