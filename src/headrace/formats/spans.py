"""The index of samples that lie one behind the other in a shard, each with a checksum of its own."""

from __future__ import annotations

import numpy as np
import xxhash

from headrace.formats.columns import I64, U64
from headrace.formats.index import RangedIndex, StoredIndex


class SpansIndex(RangedIndex, StoredIndex):
    """What holds for all such formats: a run of samples is one range, and each is checked by itself."""

    def __init__(self, shard_bytes: int, offsets: I64, lengths: I64, checksums: U64) -> None:
        """Offsets count in the shard, or in what it unpacks to; checksums are xxh3_64."""
        self.shard_bytes = shard_bytes
        self._spans = offsets, lengths, checksums
        # A memoryview gives a Python int in a third of the time that an array takes, without holding a list of them.
        self._offsets, self._lengths, self._checksums = offsets.data, lengths.data, checksums.data

    @property
    def num_samples(self) -> int:
        return len(self._offsets)

    @property
    def sample_bytes(self) -> I64:
        return self._spans[1]

    def extent(self, first: int, last: int) -> tuple[int, int]:
        if first >= last:
            return 0, 0
        offset = self._offsets[first]
        return offset, self._offsets[last - 1] + self._lengths[last - 1] - offset

    def damage(self, first: int, last: int, data: memoryview) -> dict[int, str]:
        if first >= last:
            return {}
        offsets, lengths, checksums = (column[first:last] for column in self._spans)
        starts = offsets - offsets[0]
        checksum = xxhash.xxh3_64_intdigest
        spans = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
        found = np.fromiter((checksum(data[start:end]) for start, end in spans), np.uint64, last - first)
        differing = np.flatnonzero(found != checksums).tolist()
        return {first + k: self.differs(first + k, int(found[k])) or "" for k in differing}

    def differs(self, i: int, checksum: int) -> str | None:
        """Why sample i is damaged if its bytes have this checksum; None if it is the right one."""
        expected = self._checksums[i]
        return None if checksum == expected else f"its checksum is {checksum:016x}, not {expected:016x}"
