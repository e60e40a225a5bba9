"""Which sample of which source comes when in a mixture: arithmetic, as for one source.

A mixture's epoch has as many samples as one likes, and its positions are dealt to the same P partitions. In each of
them `Mixing` says whose turn it is. The sample that a source gives to partition p when it has given it c before is
number c x P + p of that source's own endless sequence, pass after pass in a new order: so a rank reads its own share
of every source only, and each pass of a source delivers every sample once. Turns are counted over all epochs.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import xxhash

from headrace.errors import OptionError
from headrace.order.epoch import EpochOrder, Order, Places, Run
from headrace.order.keyed import I64
from headrace.order.mixing import Mixing

EVEN_PARTITIONS = 8
"""From so many partitions on roundings cancel: what was seen is at most half of what the weights may be off by."""
PLANNED_AT_ONCE = 4096
MAX_FACT_CHARS = 120


@dataclass(frozen=True, slots=True)
class Stretch:
    """Weights from one position on, until those of the next stretch hold."""

    epoch: int
    position: int
    sources: tuple[int, ...]
    """Those that have a weight above 0."""
    mixing: Mixing


@dataclass(frozen=True, eq=False)
class MixedOrder:
    """What decides the order of a mixture, for all epochs. Raises OptionError for too few partitions."""

    sources: tuple[Order, ...]
    stretches: tuple[Stretch, ...]
    """The first begins at epoch 0, position 0."""
    num_samples: int
    """Samples of an epoch."""
    seed: int
    shuffle: bool
    partitions: int

    def __post_init__(self) -> None:
        for stretch in self.stretches:
            allowed = self.partitions / stretch.mixing.partitions
            if stretch.mixing.bound_samples > stretch.mixing.partitions * allowed and self.partitions < EVEN_PARTITIONS:
                raise OptionError(
                    f"a mixture of {len(stretch.sources)} sources keeps to its weights with {EVEN_PARTITIONS} or more "
                    f"partitions: got {self.partitions}"
                )

    @property
    def num_partitions(self) -> int:
        """Partitions of the order: one where it is not shuffled."""
        return self.partitions if self.shuffle else 1

    @cached_property
    def piece_starts(self) -> I64:
        """The number of each source's first piece among those of all sources."""
        return np.cumsum([0, *(len(order.piece_samples) for order in self.sources)])

    @cached_property
    def open_bytes(self) -> int:
        """About how many bytes of one partition must be in memory at once: windows of all sources."""
        # Where a sample is a block and a window of its own, it is held while its batch is made, and no longer.
        windows = [order for order in self.sources if order.window_samples > 1 or order.block_samples > 1]
        return sum(order.open_bytes for order in windows) or max(order.open_bytes for order in self.sources)

    def facts(self) -> dict[str, Any]:
        """What decides the order, beside seed and partitions: JSON."""
        weights = [
            [s.epoch, s.position, *zip(s.sources, map(str, s.mixing.weights), strict=True)] for s in self.stretches
        ]
        facts = [order.facts() for order in self.sources]
        return {name: _brief([fact[name] for fact in facts]) for name in facts[0]} | {"weights": _brief(weights)}

    def epoch(self, epoch: int) -> MixedEpoch:
        """The order of one epoch."""
        return MixedEpoch(self, epoch)

    def turns_before(self, epoch: int, position: int, partition: I64) -> I64:
        """How many turns each partition has had before a position."""
        per_epoch = self._turns(self.num_samples, partition)
        return epoch * per_epoch + self._turns(position, partition)

    def _turns(self, position: int, partition: I64) -> I64:
        turns: I64 = np.maximum(0, -((partition - position) // self.num_partitions))
        return turns

    @cached_property
    def starts(self) -> I64:
        """The turn at which each stretch begins, shape (stretches, partitions)."""
        every = np.arange(self.num_partitions)
        return np.array([self.turns_before(s.epoch, s.position, every) for s in self.stretches])

    @property
    def counts(self) -> I64:
        """How often each source has come before each stretch, shape (stretches, sources, partitions)."""
        return self._course[0]

    @property
    def mixings(self) -> list[Mixing]:
        """How the sources of each stretch alternate: so that what they are behind at its beginning is made good."""
        return self._course[1]

    @cached_property
    def _course(self) -> tuple[I64, list[Mixing]]:
        counts = np.zeros((len(self.stretches), len(self.sources), self.num_partitions), np.int64)
        behind, every = np.zeros_like(counts[0]), np.arange(self.num_partitions)
        mixings: list[Mixing] = []
        for k, stretch in enumerate(self.stretches):
            present = list(stretch.sources)
            mixings.append(replace(stretch.mixing, behind=behind[present]) if k else stretch.mixing)
            if k + 1 < len(self.stretches):
                turns = self.starts[k + 1] - self.starts[k]
                came = mixings[k].counts(every, turns)
                counts[k + 1] = counts[k]
                counts[k + 1, present] += came
                behind[present] += mixings[k].lag(turns, came)
        return counts, mixings


class _Chosen(NamedTuple):
    """What comes at some positions; arrays of one length."""

    source: I64
    partition: I64
    """Of the mixture."""
    drawn: I64
    """Number of the sample in its source's endless sequence."""


class MixedEpoch:
    """The order of one epoch of a mixture. Not thread-safe: windows in use are remembered."""

    def __init__(self, order: MixedOrder, epoch: int) -> None:
        self._order, self._epoch = order, epoch
        self._passes: list[OrderedDict[int, EpochOrder]] = [OrderedDict() for _ in order.sources]

    def locate(self, positions: I64) -> Places:
        """Where the samples at these positions (0 <= position < num_samples, any order) lie."""
        return self._located(self._chosen(positions))

    def runs(self, rank: int, world_size: int, start: int = 0, stop: int | None = None) -> Iterator[Run]:
        """The runs that hold the rank's samples at positions start to stop - 1, in the order of first need."""
        stop = self._order.num_samples if stop is None else min(stop, self._order.num_samples)
        open_until: dict[int, int] = {}
        for positions in self._positions(rank, world_size, start, stop):
            for run in self._new_runs(positions, open_until):
                open_until[run.id] = run.done
                yield run
            last = int(positions[-1])
            open_until = {key: done for key, done in open_until.items() if done > last}

    def _positions(self, rank: int, world_size: int, start: int, stop: int) -> Iterator[I64]:
        """The rank's positions, some at a time: those of every `world_size`-th partition, or without any every n-th."""
        partitions = self._order.num_partitions
        stride = partitions if partitions > 1 else world_size
        members = np.arange(rank % stride, stride, world_size)
        turns_at_once = max(1, PLANNED_AT_ONCE // len(members))
        for turn in range(start // stride, -(-stop // stride), turns_at_once):
            turns = np.arange(turn, turn + turns_at_once) * stride
            positions = (turns[:, None] + members).reshape(-1)
            positions = positions[(positions >= start) & (positions < stop)]
            if len(positions):
                yield positions

    def _new_runs(self, positions: I64, known: dict[int, int]) -> Iterator[Run]:
        chosen = self._chosen(positions)
        ids, first = np.unique(self._located(chosen).run, return_index=True)
        is_new = np.array([key not in known for key in ids.tolist()], bool)
        ids, first = ids[is_new], first[is_new]
        ahead = np.argsort(first)
        ids, first = ids[ahead], first[ahead]
        columns = self._extents(_Chosen(*(column[first] for column in chosen)), ids)
        rows = zip(ids.tolist(), *(column.tolist() for column in columns), strict=True)
        for (key, piece, begin, end, done), need in zip(rows, positions[first].tolist(), strict=True):
            yield Run(key, piece, begin, end, need, done)

    def _extents(self, chosen: _Chosen, ids: I64) -> tuple[I64, I64, I64, I64]:
        """Runs that are needed first as chosen: piece, first and last sample, and the position after the last use."""
        order, num_sources = self._order, len(self._order.sources)
        piece, first, last, drawn = (np.empty_like(ids) for _ in range(4))
        for source, number, here in self._by_pass(chosen):
            size = order.sources[source].num_samples
            local = ids[here] // num_sources - number * size
            runs = self._pass(source, number).extents(local)
            piece[here] = runs.piece + order.piece_starts[source]
            first[here], last[here] = runs.first, runs.last
            drawn[here] = number * size + runs.last_position
        count = (drawn - chosen.partition) // order.num_partitions
        turn = self._turn_of(chosen.source, chosen.partition, count)
        before = order.turns_before(self._epoch, 0, chosen.partition)
        done = (turn - before) * order.num_partitions + chosen.partition + 1
        return piece, first, last, np.minimum(done, order.num_samples)

    def _located(self, chosen: _Chosen) -> Places:
        order, num_sources = self._order, len(self._order.sources)
        piece, sample, run = (np.empty_like(chosen.drawn) for _ in range(3))
        for source, number, here in self._by_pass(chosen):
            size = order.sources[source].num_samples
            places = self._pass(source, number).locate(chosen.drawn[here] - number * size)
            piece[here] = places.piece + order.piece_starts[source]
            sample[here] = places.sample
            run[here] = (places.run + number * size) * num_sources + source
        return Places(piece, sample, run)

    def _by_pass(self, chosen: _Chosen) -> Iterator[tuple[int, int, I64]]:
        """(source, pass, where it is chosen) of all that is chosen."""
        if not len(chosen.source):
            return
        sizes = np.array([order.num_samples for order in self._order.sources])
        number = chosen.drawn // sizes[chosen.source]
        keys, group = np.unique(np.stack((chosen.source, number)), axis=1, return_inverse=True)
        ordered = np.argsort(group, kind="stable")
        cuts = np.searchsorted(group[ordered], np.arange(1, keys.shape[1]))
        for (source, number_of_pass), here in zip(keys.T.tolist(), np.split(ordered, cuts), strict=True):
            yield source, number_of_pass, here

    def _pass(self, source: int, number: int) -> EpochOrder:
        """The order of one pass of a source; those used last stay."""
        kept, order = self._passes[source], self._order.sources[source]
        if number not in kept:
            kept[number] = order.epoch(number)
            if len(kept) > 2 + 2 * self._order.num_partitions // order.num_samples:
                kept.popitem(last=False)
        kept.move_to_end(number)
        return kept[number]

    def _chosen(self, positions: I64) -> _Chosen:
        order = self._order
        partition = positions % order.num_partitions
        turn = order.turns_before(self._epoch, 0, partition) + positions // order.num_partitions
        stretch = _number_below(order.starts[1:], (partition,), turn)
        source, count = np.empty_like(turn), np.empty_like(turn)
        for k in np.unique(stretch).tolist():
            here = stretch == k
            mine, known = partition[here], order.stretches[k]
            chosen, before = order.mixings[k].choose(mine, turn[here] - order.starts[k, mine])
            source[here] = np.array(known.sources)[chosen]
            count[here] = before + order.counts[k, source[here], mine]
        return _Chosen(source, partition, count * order.num_partitions + partition)

    def _turn_of(self, source: I64, partition: I64, count: I64) -> I64:
        """The turn at which each source comes in its partition after it has come `count` times."""
        order = self._order
        stretch, turn = _number_below(order.counts[1:], (source, partition), count), np.empty_like(count)
        for k in np.unique(stretch).tolist():
            here = np.flatnonzero(stretch == k)
            known, mine = order.stretches[k], partition[here]
            place = {source: at for at, source in enumerate(known.sources)}
            # A source that this last stretch has no more does not come again: its windows stay open to the end.
            at = np.array([place.get(one, -1) for one in source[here].tolist()])
            left = count[here] - order.counts[k, source[here], mine]
            turn[here] = np.iinfo(np.int64).max // (4 * order.num_partitions)
            is_in = at >= 0
            found = order.mixings[k].turn_of(at[is_in], mine[is_in], left[is_in])
            turn[here[is_in]] = order.starts[k, mine[is_in]] + found
        return turn


def _brief(values: list[Any]) -> list[Any] | str:
    """The values; their digest if they are long, as a state is to be short."""
    text = json.dumps(values)
    return json.loads(text) if len(text) <= MAX_FACT_CHARS else xxhash.xxh3_128_hexdigest(text.encode())


def _number_below(starts: I64, columns: tuple[I64, ...], values: I64) -> I64:
    """How many entries of each value's column are at most the value; each column ascends along the first axis."""
    low, high = np.zeros_like(values), np.full_like(values, len(starts))
    for _ in range(len(starts).bit_length()):
        middle = (low + high) // 2
        is_open = low < high
        below = is_open & (starts[(np.minimum(middle, len(starts) - 1), *columns)] <= values)
        low = np.where(below, middle + 1, low)
        high = np.where(is_open & ~below, middle, high)
    return low
