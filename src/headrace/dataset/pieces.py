"""The parts of a dataset that are read on their own, over all shards: what the order of samples is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from headrace.dataset.selection import Selection
from headrace.formats import Shards
from headrace.formats.columns import I64


class Pieces:
    """A dataset's pieces in storage order: a piece is a shard, or a part of one that is unpacked as a whole."""

    def __init__(self, shard: I64, number: I64, samples: I64, num_bytes: I64, is_whole: npt.NDArray[np.bool_]) -> None:
        """Columns of one length; `shard` and `number` say where each piece lies."""
        self._shard, self._number = shard, number
        self.samples = samples
        """Samples of each piece."""
        self.bytes = num_bytes
        """Memory that each piece takes when it is read, in bytes."""
        self.is_whole = is_whole
        """Whether each piece is read and unpacked as a whole."""
        self.sample_starts: I64 = np.concatenate(([0], np.cumsum(samples)))
        """The number of each piece's first sample; at the end that of all samples."""

    @classmethod
    def of(cls, shards: Shards, count: Callable[[I64], I64] | None = None) -> Pieces:
        """Those of shards. `count` gives the samples of token shards from their bytes of tokens, where the manifest's
        do not hold."""
        num_pieces = np.diff(shards.piece_starts)
        shard = np.repeat(np.arange(len(shards)), num_pieces)
        number = np.arange(len(shard)) - shards.piece_starts[shard]
        samples = shards.piece_samples if count is None else count(shards.bytes - shards.header_bytes)
        memory = np.where(shards.unpacked_bytes > 0, shards.unpacked_bytes, shards.bytes)[shard]
        # In shards of several pieces what each takes is known by its share of samples only.
        share = np.ceil(memory * (shards.piece_samples / np.maximum(1, shards.samples[shard]))).astype(np.int64)
        num_bytes = np.where(num_pieces[shard] == 1, memory, share)
        return cls(shard, number, samples, num_bytes, shards.unpacked_bytes[shard] > 0)

    def selected(self, selection: Selection) -> Pieces:
        """The pieces that these samples make. One that is unpacked as a whole takes as much for some of its samples."""
        base, samples = selection.base, selection.samples
        share = np.ceil(self.bytes[base] * (samples / np.maximum(1, self.samples[base]))).astype(np.int64)
        num_bytes = np.where(self.is_whole[base], self.bytes[base], share)
        return Pieces(self._shard[base], self._number[base], samples, num_bytes, self.is_whole[base])

    @classmethod
    def joined(cls, parts: Sequence[Pieces], shard_starts: Sequence[int]) -> Pieces:
        """The pieces of several datasets, one behind the other; each one's shards are numbered from its start on."""
        return cls(
            np.concatenate([part._shard + start for part, start in zip(parts, shard_starts, strict=True)]),
            np.concatenate([part._number for part in parts]),
            np.concatenate([part.samples for part in parts]),
            np.concatenate([part.bytes for part in parts]),
            np.concatenate([part.is_whole for part in parts]),
        )

    def __len__(self) -> int:
        return len(self._shard)

    @property
    def largest_whole_bytes(self) -> int:
        """Memory of the largest piece that is unpacked as a whole; 0 if there is none."""
        return int(self.bytes[self.is_whole].max(initial=0))

    def place(self, piece: int) -> tuple[int, int]:
        """(shard, number within the shard) of a piece."""
        return int(self._shard[piece]), int(self._number[piece])

    def find(self, sample: int) -> tuple[int, int]:
        """(piece, number within the piece) of a sample of the dataset."""
        piece = int(np.searchsorted(self.sample_starts, sample, side="right")) - 1
        return piece, sample - int(self.sample_starts[piece])
