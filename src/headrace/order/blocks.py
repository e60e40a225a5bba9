"""Blocks: runs of neighbouring samples that are read by one request, and their order in an epoch.

Shards of b bytes and s samples have ceil(b / block size) blocks of equal sample counts, at most s of them: arithmetic
on the manifest alone. The blocks of an epoch, permuted and laid end to end, are one *virtual sequence* of all samples.
Up to 2^20 blocks are permuted as a whole. Above that, pieces are permuted and cut into groups, and blocks within each
group, so that only the groups in use are ever in memory.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from headrace.order.keyed import I64, derive_key, permutation

MAX_BLOCK_BYTES = 4 << 20
MIN_NUM_BLOCKS = 3072
MAX_PERMUTED_BLOCKS = 1 << 20
GROUP_BLOCKS = 1 << 14
_PIECES, _BLOCKS = 1, 2  # what a key is for


def default_block_bytes(dataset_bytes: int) -> int:
    """4 MiB, or less for a small dataset so that it still has some 3,072 blocks to shuffle."""
    return max(1, min(MAX_BLOCK_BYTES, dataset_bytes // MIN_NUM_BLOCKS))


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

    def __init__(self, piece_samples: I64, piece_bytes: I64, block_bytes: int, key: int | None, num_kept: int) -> None:
        """`key` None keeps the storage order. The `num_kept` groups used last stay in memory."""
        self._samples = piece_samples
        self._num_blocks = np.minimum(piece_samples, np.maximum(1, -(-piece_bytes // block_bytes)))
        self._key = key
        self._num_kept = num_kept
        self._rows: OrderedDict[int, BlockRow] = OrderedDict()
        self._pieces = self._permute_pieces()
        self._group_pieces = self._cut_groups()
        samples_before = np.concatenate(([0], np.cumsum(piece_samples[self._pieces])))
        self.group_starts: I64 = samples_before[self._group_pieces]
        self.num_samples = int(samples_before[-1])

    @property
    def num_blocks(self) -> int:
        """How many blocks the dataset has."""
        return int(self._num_blocks.sum())

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

    def _permute_pieces(self) -> I64:
        num_pieces = len(self._samples)
        if self._key is None or self.num_blocks <= MAX_PERMUTED_BLOCKS:
            return np.arange(num_pieces, dtype=np.int64)
        return permutation(derive_key(self._key, _PIECES), num_pieces)

    def _cut_groups(self) -> I64:
        """Places in the list of pieces where groups begin, and the list's end."""
        num_pieces = len(self._pieces)
        if self.num_blocks <= MAX_PERMUTED_BLOCKS:
            return np.array([0, num_pieces], np.int64)
        blocks_before = np.cumsum(self._num_blocks[self._pieces]) - self._num_blocks[self._pieces]
        cuts = np.flatnonzero(np.diff(blocks_before // GROUP_BLOCKS)) + 1
        return np.concatenate(([0], cuts, [num_pieces])).astype(np.int64)

    def _make_row(self, group: int) -> BlockRow:
        pieces = self._pieces[self._group_pieces[group] : self._group_pieces[group + 1]]
        counts = self._num_blocks[pieces]
        piece = np.repeat(pieces, counts)
        number = np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)
        samples, blocks = self._samples[piece], self._num_blocks[piece]
        first, last = number * samples // np.maximum(blocks, 1), (number + 1) * samples // np.maximum(blocks, 1)
        if self._key is not None:
            order = permutation(derive_key(self._key, _BLOCKS, group), len(piece))
            piece, first, last = piece[order], first[order], last[order]
        starts = self.group_starts[group] + np.concatenate(([0], np.cumsum(last - first)))
        return BlockRow(starts.astype(np.int64), piece, first)
