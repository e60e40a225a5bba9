"""Blocks: runs of neighbouring samples that are read by one request, and their order in an epoch.

Shards of b bytes and s samples have ceil(b / block size) blocks of equal sample counts, at most s of them: arithmetic
on the manifest alone. The blocks of an epoch, permuted and laid end to end, are one *virtual sequence* of all samples.

Up to 2^16 blocks are permuted as a whole. More are dealt to *groups* of about 4,096; the groups are permuted, and the
blocks within each. So only the groups in use are ever in memory, and an epoch begins without sorting what may be a
million shards. What is dealt are *stretches*: neighbouring blocks of one piece, the whole piece unless it is large.
They are dealt in rounds, from the start of storage to its end, one to each group, every round from another group on.
So a group has stretches from everywhere in storage, others each epoch, however uneven the pieces are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from headrace.errors import OptionError
from headrace.order.keyed import I64, derive_key, hash_sequence, permutation

MAX_BLOCK_BYTES = 4 << 20
MIN_NUM_BLOCKS = 3072
MAX_NUM_BLOCKS = 1 << 30
MAX_PERMUTED_BLOCKS = 1 << 16
GROUP_BLOCKS = 1 << 12
MIN_NUM_STRETCHES = 1 << 18
_PIECES_AT_ONCE = 1 << 15
_GROUPS, _BLOCKS, _ROUNDS = 1, 2, 3  # what a key is for


def default_block_bytes(dataset_bytes: int) -> int:
    """4 MiB; less for a small dataset, which has some 3,072 blocks to shuffle, and more where 2^30 do not suffice."""
    return max(1, min(MAX_BLOCK_BYTES, dataset_bytes // MIN_NUM_BLOCKS), _least_block_bytes(dataset_bytes))


def _least_block_bytes(dataset_bytes: int) -> int:
    return -(-dataset_bytes // MAX_NUM_BLOCKS)


class Blocks:
    """The blocks of a dataset in storage order, and their stretches: the same in every epoch."""

    def __init__(self, piece_samples: I64, piece_bytes: I64, block_bytes: int) -> None:
        """Raises OptionError for blocks so small that there are more than 2^30, besides one a piece."""
        self.piece_samples, self._piece_bytes, self._block_bytes = piece_samples, piece_bytes, block_bytes
        self.count = sum(int(self._blocks_of_pieces(lot).sum()) for lot in self._lots())
        if self.count > MAX_NUM_BLOCKS + len(piece_samples):
            raise OptionError(
                f"block_size must leave at most {MAX_NUM_BLOCKS:,} blocks: got {block_bytes:,}, which makes "
                f"{self.count:,}; give at least {_least_block_bytes(int(piece_bytes.sum())):,}"
            )
        is_whole = self.count <= MAX_PERMUTED_BLOCKS
        self.num_groups = 1 if is_whole else -(-self.count // GROUP_BLOCKS)
        self._stretch_blocks = max(1, self.count if is_whole else self.count // MIN_NUM_STRETCHES)
        cut = np.flatnonzero(
            (piece_samples > self._stretch_blocks) & (piece_bytes > self._stretch_blocks * block_bytes)
        )
        # Before the first cut piece comes one that is none, so that every stretch has a cut piece at or before it.
        self._cut = np.concatenate(([-1], cut))
        self._cut_stretches = np.concatenate(([1], -(-self._blocks_of_pieces(cut) // self._stretch_blocks)))
        self._more = np.cumsum(self._cut_stretches - 1)
        """Stretches up to and with each cut piece, less the pieces."""
        self._cut_starts = self._cut + self._more - (self._cut_stretches - 1)
        self.num_stretches = len(piece_samples) + int(self._more[-1])
        self.num_rounds = -(-self.num_stretches // self.num_groups)

    def stretch_samples(self) -> Iterator[I64]:
        """Samples of each stretch, those of some pieces at a time."""
        if len(self._cut) == 1:
            yield self.piece_samples
            return
        for lot in self._lots():
            yield self._cut_apart(lot, slice(*np.searchsorted(self._cut, (lot.start, lot.stop))))

    def blocks_of(self, stretches: I64) -> tuple[I64, I64]:
        """(piece, number in its piece) of each block of these stretches."""
        piece, begin = self._locate(stretches)
        counts = np.minimum(self._stretch_blocks, self._blocks_of_pieces(piece) - begin)
        ends = np.cumsum(counts)
        number = np.arange(ends[-1]) - np.repeat(ends - counts - begin, counts)
        return np.repeat(piece, counts), number

    def first_sample(self, piece: I64, number: I64) -> I64:
        """Where in its piece block `number` begins; the piece's length for the block after its last."""
        count = np.maximum(1, self._blocks_of_pieces(piece))
        first, rest = np.divmod(self.piece_samples[piece], count)
        # number x samples // count, in a form that stays below 2^63: a piece may have 10^12 samples.
        first *= number
        rest *= number
        rest //= count
        first += rest
        return first

    def _lots(self) -> Iterator[slice]:
        """All pieces, some at a time: most of the cost of planning is memory not touched before, so little is used."""
        num_pieces = len(self.piece_samples)
        return (slice(p, min(p + _PIECES_AT_ONCE, num_pieces)) for p in range(0, num_pieces, _PIECES_AT_ONCE))

    def _blocks_of_pieces(self, pieces: I64 | slice) -> I64:
        """Blocks of each of these pieces."""
        count: I64 = self._piece_bytes[pieces] + (self._block_bytes - 1)
        count //= self._block_bytes
        np.maximum(count, 1, out=count)
        return np.minimum(self.piece_samples[pieces], count, out=count)

    def _cut_apart(self, pieces: slice, cut: slice) -> I64:
        """Samples of the stretches of neighbouring pieces, of which some, of these places in `_cut`, are cut."""
        counts = self._cut_stretches[cut] - 1
        piece = np.repeat(self._cut[cut], counts)
        nth = np.arange(1, len(piece) + 1)
        number = nth - np.repeat(np.cumsum(counts) - counts, counts)
        inner = piece - pieces.start + nth
        begins_piece = np.ones(pieces.stop - pieces.start + len(inner), np.bool_)
        begins_piece[inner] = False
        samples = np.zeros(len(begins_piece), np.int64)
        samples[begins_piece] = self.piece_samples[pieces]
        # What a piece has from an inner stretch on is moved there from the stretch before.
        left = self.piece_samples[piece] - self.first_sample(piece, number * self._stretch_blocks)
        samples[inner] += left
        samples[inner - 1] -= left
        return samples

    def _locate(self, stretches: I64) -> tuple[I64, I64]:
        """Each stretch's piece, and the number of its first block there."""
        before = np.searchsorted(self._cut_starts, stretches, side="right") - 1
        number = stretches - self._cut_starts[before]
        inside = number < self._cut_stretches[before]
        piece = np.where(inside, self._cut[before], stretches - self._more[before])
        return piece, np.where(inside, number * self._stretch_blocks, 0)


@dataclass(frozen=True, slots=True)
class BlockRow:
    """Blocks in the order of the virtual sequence. `starts` has one more entry than the rest: where the last ends."""

    starts: I64
    """Place of each block's first sample in the virtual sequence."""
    piece: I64
    first: I64
    """Number of each block's first sample in its piece."""


class BlockSequence:
    """The virtual sequence of one epoch. Not thread-safe: groups in use are remembered."""

    def __init__(self, blocks: Blocks, key: int | None, num_kept: int) -> None:
        """`key` None keeps the storage order. The `num_kept` groups used last stay in memory."""
        self._blocks = blocks
        self._key = key
        self._num_kept = num_kept
        self._rows: OrderedDict[int, BlockRow] = OrderedDict()
        self._labels, self._turns = self._deal()
        self.group_starts: I64 = _starts(self._group_samples())

    def row(self, group: int) -> BlockRow:
        """The blocks of one group."""
        if group in self._rows:
            self._rows.move_to_end(group)
            return self._rows[group]
        row = self._rows[group] = self._make_row(group)
        if len(self._rows) > self._num_kept:
            self._rows.popitem(last=False)
        return row

    def group_of(self, places: I64) -> I64:
        """The group that holds each place of the virtual sequence."""
        return np.searchsorted(self.group_starts, places, side="right") - 1

    def _deal(self) -> tuple[I64, I64]:
        """The groups' order in the epoch, and how far each round is turned: it begins with its stretch of that number.

        Group g of the deal gets stretch (g + turn) mod groups of each round.
        """
        num_groups, num_rounds = self._blocks.num_groups, self._blocks.num_rounds
        if self._key is None:
            return np.arange(num_groups), np.zeros(num_rounds, np.int64)
        key = np.array([derive_key(self._key, _ROUNDS)], np.uint64)
        turns = hash_sequence(key, np.arange(num_rounds, dtype=np.uint64)) % np.uint64(num_groups)
        return permutation(derive_key(self._key, _GROUPS), num_groups), turns.astype(np.int64)

    def _group_samples(self) -> I64:
        """Samples of each group, in the order of the epoch."""
        if self._key is None:
            samples = np.concatenate(list(self._blocks.stretch_samples()))
            return np.add.reduceat(samples, np.arange(0, len(samples), self._blocks.num_rounds))
        num_groups, first = self._blocks.num_groups, 0
        dealt = np.zeros(num_groups, np.int64)
        for rounds in self._rounds():
            turns = self._turns[first : first + len(rounds)]
            first += len(rounds)
            # Rounds turned alike are added first, so that there are never many turns.
            for turn in set(turns.tolist()):
                turned = rounds[turns == turn].sum(axis=0)
                dealt[: num_groups - turn] += turned[turn:]
                dealt[num_groups - turn :] += turned[:turn]
        return dealt[self._labels]

    def _rounds(self) -> Iterator[I64]:
        """Samples of the stretches of some rounds at a time, shape (rounds, groups); the last is filled up with 0."""
        num_groups = self._blocks.num_groups
        missing = np.zeros(-self._blocks.num_stretches % num_groups, np.int64)
        waiting = missing[:0]
        for samples in chain(self._blocks.stretch_samples(), (missing,)):
            waiting = np.concatenate((waiting, samples)) if len(waiting) else samples
            whole = len(waiting) // num_groups * num_groups
            yield waiting[:whole].reshape(-1, num_groups)
            waiting = waiting[whole:]

    def _stretches(self, group: int) -> I64:
        """The stretches dealt to one group of the epoch."""
        rounds, num_groups = np.arange(self._blocks.num_rounds), self._blocks.num_groups
        if self._key is None:
            stretches = group * len(rounds) + rounds
        else:
            stretches = rounds * num_groups + (self._labels[group] + self._turns) % num_groups
        return stretches[stretches < self._blocks.num_stretches]

    def _make_row(self, group: int) -> BlockRow:
        piece, number = self._blocks.blocks_of(self._stretches(group))
        if self._key is not None:
            order = permutation(derive_key(self._key, _BLOCKS, group), len(piece))
            piece, number = piece[order], number[order]
        first = self._blocks.first_sample(piece, number)
        lengths = self._blocks.first_sample(piece, number + 1) - first
        return BlockRow(self.group_starts[group] + _starts(lengths), piece, first)


def _starts(lengths: I64) -> I64:
    """Where each of these begins when they are laid end to end, and where the last ends."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
