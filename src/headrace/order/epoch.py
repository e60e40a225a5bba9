"""Which sample comes when: position -> sample, and which bytes a rank reads in what order.

The virtual sequence of an epoch (see `blocks`) is cut into P equal *partitions*; position g of the epoch is sample
g div P of partition g mod P, and a data-parallel rank owns the partitions congruent to its rank. Each partition is
read forward and shuffled within *windows* of w samples. With shuffling off, position g is storage sample g.

Everything here is arithmetic on (order, epoch, position): no I/O, no threads. Memory is that of the windows in use.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import OptionError
from headrace.order.blocks import Blocks, BlockSequence, default_block_bytes
from headrace.order.keyed import I64, U64, derive_key, hash_sequence, permutation_rows, permuted

_SEQUENCE, _WINDOWS = 1, 2  # what a key is for
RUNS_AT_ONCE = 64
MAX_SORTED_WINDOW = 1024
"""Samples of a window up to which its permutation is made as a whole, by sorting; wider ones are computed sample by
sample, which costs more for each and nothing for those not yet asked for."""


@dataclass(frozen=True, eq=False)
class Order:
    """What decides the order of a dataset's samples, for all epochs.

    Raises OptionError for more samples than 64-bit numbers can order, and, when first asked for a block or an epoch,
    for a `block_size` of which the dataset has too many.
    """

    piece_samples: I64
    """Samples of each piece of the dataset, in storage order: a shard, or a part of one that is read on its own."""
    piece_bytes: I64
    seed: int
    shuffle: bool
    partitions: int
    block_size: int | None = None
    """Bytes of a block; None: 4 MiB, less for a small dataset, more for one of over 4 PiB."""
    window: int | None = None
    """Samples of one partition that are shuffled among themselves, 0 or 1 for none; None: those of a mean block."""

    def __post_init__(self) -> None:
        most = 2**62 // self.partitions
        if self.num_samples > most:
            raise OptionError(
                f"an epoch of {self.partitions:,} partitions has at most {most:,} samples: got {self.num_samples:,}; "
                "choose fewer partitions"
            )

    def __getstate__(self) -> dict[str, Any]:
        """The description alone: what is cached may be several times as large, and costs less to make than to send."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return int(self.piece_samples.sum())

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of a block, after the default is filled in."""
        return self.block_size or default_block_bytes(int(self.piece_bytes.sum()))

    @cached_property
    def window_samples(self) -> int:
        """Samples of a window, at least 1, after the default is filled in."""
        if not self.shuffle:
            return 1
        if self.window is not None:
            return max(1, self.window)
        return self.block_samples

    @cached_property
    def block_samples(self) -> int:
        """Samples of a mean block, rounded up."""
        return max(1, -(-self.num_samples // max(1, self._blocks.count)))

    @cached_property
    def open_bytes(self) -> int:
        """About how many bytes of one partition must be in memory at once: a window, and the blocks it cuts."""
        sample_bytes = int(self.piece_bytes.sum()) / max(1, self.num_samples)
        size = -(-self.num_samples // self.partitions) if self.shuffle else self.num_samples
        return int(min(size, self.window_samples + 2 * self.block_samples) * sample_bytes) + 1

    def facts(self) -> dict[str, Any]:
        """What decides the order, beside seed and partitions: JSON."""
        return {"block_size": self.block_bytes, "window": self.window_samples}

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of one epoch."""
        key = derive_key(self.seed, epoch, _SEQUENCE) if self.shuffle else None
        return EpochOrder(self, epoch, BlockSequence(self._blocks, key, 2 * self.partitions))

    @cached_property
    def _blocks(self) -> Blocks:
        return Blocks(self.piece_samples, self.piece_bytes, self.block_bytes)


class Run(NamedTuple):
    """Neighbouring samples of one piece that one rank reads by one request: a block, or a partition's part of one."""

    id: int
    """Place of its first sample in the virtual sequence: unique in an epoch."""
    piece: int
    first: int
    last: int
    """Samples first to last - 1 of the piece."""
    need: int
    """No position below this one uses it."""
    done: int
    """No position from this one on uses it."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the samples at some positions lie; arrays of one length."""

    piece: I64
    sample: I64
    """Number of the sample in its piece."""
    run: I64
    """`Run.id` of the run that holds it."""


class Extents(NamedTuple):
    """What some runs hold; arrays of one length."""

    piece: I64
    first: I64
    last: I64
    """Samples first to last - 1 of the piece."""
    last_position: I64
    """The last position that uses the run."""


class _Cut(NamedTuple):
    """Neighbouring blocks of the virtual sequence, the outer ones cut to a partition."""

    starts: I64
    lengths: I64
    piece: I64
    first: I64


class EpochOrder:
    """The order of one epoch. Not thread-safe: windows in use are remembered."""

    def __init__(self, order: Order, epoch: int, sequence: BlockSequence) -> None:
        self._sequence = sequence
        self.num_samples = order.num_samples
        self._num_partitions = order.partitions if order.shuffle else 1
        # A window is at most a partition, so that a row of a window is never wider than what it orders.
        self._window = max(1, min(order.window_samples, -(-self.num_samples // self._num_partitions)))
        self._window_key = derive_key(order.seed, epoch, _WINDOWS)
        self._kept_ids = np.empty(0, np.int64)
        self._kept_rows = np.empty((0, min(self._window, MAX_SORTED_WINDOW)), np.uint16)

    def locate(self, positions: I64) -> Places:
        """Where the samples at these positions (0 <= position < num_samples, any order) lie."""
        partition = positions % self._num_partitions
        begin = self._partition_start(partition)
        place = begin + self._shuffled(partition, positions // self._num_partitions)
        piece, sample, run = np.empty_like(place), np.empty_like(place), np.empty_like(place)
        for group, here in _apart(self._sequence.group_of(place)):
            row = self._sequence.row(group)
            block = np.searchsorted(row.starts, place[here], side="right") - 1
            piece[here] = row.piece[block]
            sample[here] = row.first[block] + place[here] - row.starts[block]
            run[here] = np.maximum(row.starts[block], begin[here])
        return Places(piece, sample, run)

    def runs(self, rank: int, world_size: int, start: int = 0, stop: int | None = None) -> Iterator[Run]:
        """The runs that hold the rank's samples at positions start to stop - 1, in the order of first need."""
        stop = self.num_samples if stop is None else min(stop, self.num_samples)
        mine = range(rank % self._num_partitions, self._num_partitions, world_size)
        each = (self._partition_runs(p, start, stop) for p in mine)
        return heapq.merge(*each, key=lambda run: (run.need, run.id))

    def extents(self, ids: I64) -> Extents:
        """What the runs of these ids hold, and until when."""
        size, longer = divmod(self.num_samples, self._num_partitions)
        in_longer = ids // (size + 1)
        partition = np.where(in_longer < longer, in_longer, longer + (ids - longer * (size + 1)) // max(1, size))
        begin, end = self._partition_start(partition), self._partition_start(partition + 1)
        piece, first, length = np.empty_like(ids), np.empty_like(ids), np.empty_like(ids)
        groups = self._sequence.group_of(ids)
        for group in np.unique(groups):
            here = groups == group
            row, places = self._sequence.row(int(group)), ids[here]
            block = np.searchsorted(row.starts, places, side="right") - 1
            piece[here] = row.piece[block]
            first[here] = row.first[block] + places - row.starts[block]
            length[here] = np.minimum(row.starts[block + 1], end[here]) - places
        window = (ids + length - 1 - begin) // self._window
        turn = np.minimum((window + 1) * self._window, end - begin) - 1
        return Extents(piece, first, first + length, turn * self._num_partitions + partition)

    def _partition_start(self, partition: I64) -> I64:
        """Where partitions begin in the virtual sequence: their sizes differ by one at most."""
        size, longer = divmod(self.num_samples, self._num_partitions)
        return partition * size + np.minimum(partition, longer)

    def _partition_runs(self, partition: int, start: int, stop: int) -> Iterator[Run]:
        stride, window = self._num_partitions, self._window
        begin, end = (int(v) for v in self._partition_start(np.array([partition, partition + 1])))
        at = begin + max(0, -(-(start - partition) // stride)) // window * window
        last_need = -(-(stop - partition) // stride)
        while at < end and (at - begin) // window * window < last_need:
            cut = self._blocks_from(at, begin, end)
            need = (cut.starts - begin) // window * window
            done = np.minimum(-(-(cut.starts + cut.lengths - begin) // window) * window, end - begin)
            columns = (
                *(cut.starts, cut.piece, cut.first, cut.first + cut.lengths),
                *(need * stride + partition, (done - 1) * stride + partition + 1),
            )
            wanted = int(np.searchsorted(need, last_need))
            yield from map(Run._make, zip(*(column[:wanted].tolist() for column in columns), strict=True))
            at = int(cut.starts[-1] + cut.lengths[-1])

    def _blocks_from(self, place: int, begin: int, end: int) -> _Cut:
        """Some blocks, from that which holds `place` on, as far as they lie in begin to end - 1."""
        row = self._sequence.row(int(self._sequence.group_of(np.array([place]))[0]))
        first = int(np.searchsorted(row.starts, place, side="right")) - 1
        last = min(first + RUNS_AT_ONCE, int(np.searchsorted(row.starts[:-1], end)))
        starts = np.maximum(row.starts[first:last], begin)
        lengths = np.minimum(row.starts[first + 1 : last + 1], end) - starts
        return _Cut(starts, lengths, row.piece[first:last], row.first[first:last] + starts - row.starts[first:last])

    def _shuffled(self, partition: I64, turn: I64) -> I64:
        """The place within its partition of each partition's sample number `turn`."""
        if self._window == 1:
            return turn
        window = turn // self._window
        num_windows = -(-self.num_samples // self._window) + 1
        ids, inverse = _distinct(partition * num_windows + window)
        within = turn - window * self._window
        if self._window <= MAX_SORTED_WINDOW:
            place: I64 = window * self._window + self._window_rows(ids, num_windows)[inverse, within]
            return place
        keys, sizes = self._window_keys(ids), self._window_sizes(ids, num_windows)
        place = window * self._window
        for size in set(sizes.tolist()):  # three at most: the last windows of longer and shorter partitions differ
            here = np.flatnonzero((sizes == size)[inverse])
            place[here] += permuted(keys[inverse[here]], size, within[here].astype(np.uint64))
        return place

    def _window_rows(self, ids: I64, num_windows: int) -> NDArray[np.uint16]:
        """The permutations of these windows (ids ascending), those of the last call taken over."""
        rows = np.empty((len(ids), self._window), np.uint16)
        known = np.isin(ids, self._kept_ids, assume_unique=True)
        rows[known] = self._kept_rows[np.searchsorted(self._kept_ids, ids[known])]
        new = ids[~known]
        if len(new):
            made = permutation_rows(self._window_keys(new), self._window_sizes(new, num_windows))
            rows[~known, : made.shape[1]] = made
        self._kept_ids, self._kept_rows = ids, rows
        return rows

    def _window_keys(self, ids: I64) -> U64:
        return hash_sequence(np.array([self._window_key], np.uint64), ids.astype(np.uint64))

    def _window_sizes(self, ids: I64, num_windows: int) -> I64:
        """Samples of these windows: fewer in the last of a partition."""
        partition, window = ids // num_windows, ids % num_windows
        size = self._partition_start(partition + 1) - self._partition_start(partition)
        sizes: I64 = np.minimum(self._window, size - window * self._window)
        return sizes


def _apart(groups: I64) -> Iterator[tuple[int, I64]]:
    """Each group that occurs, with the indices where it does."""
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    for here in np.split(order, cuts) if len(order) else ():
        yield int(groups[here[0]]), here


def _distinct(ids: I64) -> tuple[I64, I64]:
    """The distinct ids, ascending, and where among them each is: `numpy.unique`, whose first use imports numpy.ma."""
    order = np.argsort(ids)
    ordered = ids[order]
    is_new = np.ones(len(ids), np.bool_)
    is_new[1:] = ordered[1:] != ordered[:-1]
    inverse = np.empty_like(order)
    inverse[order] = np.cumsum(is_new) - 1
    return ordered[is_new], inverse
