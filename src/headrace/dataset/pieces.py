"""The parts of a dataset that are read on their own, over all shards: what the order of samples is made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from headrace.formats import Shards
from headrace.formats.columns import I64


class Pieces:
    """A dataset's pieces in storage order: a piece is a shard, or a part of one that is unpacked as a whole."""

    def __init__(self, shards: Shards, count: Callable[[I64], I64] | None = None) -> None:
        """`count` gives the samples of token shards from their bytes of tokens, where the manifest's do not hold."""
        self._starts = shards.piece_starts
        num_pieces = np.diff(self._starts)
        self._shard = np.repeat(np.arange(len(shards)), num_pieces)
        self.samples: I64 = shards.piece_samples if count is None else count(shards.bytes - shards.header_bytes)
        """Samples of each piece."""
        self.is_whole = shards.unpacked_bytes[self._shard] > 0
        """Whether each piece is read and unpacked as a whole."""
        memory = np.where(shards.unpacked_bytes > 0, shards.unpacked_bytes, shards.bytes)[self._shard]
        in_shard = np.maximum(1, shards.samples[self._shard])
        # In shards of several pieces what each takes is known by its share of samples only.
        share = np.ceil(memory * (shards.piece_samples / in_shard)).astype(np.int64)
        self.bytes: I64 = np.where(num_pieces[self._shard] == 1, memory, share)
        """Memory that each piece takes when it is read, in bytes."""
        self.sample_starts: I64 = np.concatenate(([0], np.cumsum(self.samples)))
        """The number of each piece's first sample; at the end that of all samples."""

    def __len__(self) -> int:
        return len(self._shard)

    @property
    def largest_whole_bytes(self) -> int:
        """Memory of the largest piece that is unpacked as a whole; 0 if there is none."""
        return int(self.bytes[self.is_whole].max(initial=0))

    def place(self, piece: int) -> tuple[int, int]:
        """(shard, number within the shard) of a piece."""
        shard = int(self._shard[piece])
        return shard, piece - int(self._starts[shard])

    def of_shard(self, shard: int) -> range:
        """The pieces of a shard."""
        return range(int(self._starts[shard]), int(self._starts[shard + 1]))

    def find(self, sample: int) -> tuple[int, int]:
        """(piece, number within the piece) of a sample of the dataset."""
        piece = int(np.searchsorted(self.sample_starts, sample, side="right")) - 1
        return piece, sample - int(self.sample_starts[piece])
