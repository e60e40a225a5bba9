"""The index of samples that lie one behind the other in a shard, each with a checksum of its own."""

from __future__ import annotations

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
        base = self._offsets[first] if first < last else 0
        found = {}
        for i in range(first, last):
            at = self._offsets[i] - base
            if reason := self.differs(i, xxhash.xxh3_64_intdigest(data[at : at + self._lengths[i]])):
                found[i] = reason
        return found

    def differs(self, i: int, checksum: int) -> str | None:
        """Why sample i is damaged if its bytes have this checksum; None if it is the right one."""
        expected = self._checksums[i]
        return None if checksum == expected else f"its checksum is {checksum:016x}, not {expected:016x}"
