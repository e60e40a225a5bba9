"""Frames: parts of a shard that are packed, each verified and unpacked as a whole.

A `.jsonl.gz` file is one frame, a LitData chunk may have many. What a frame unpacks to was counted when the shard was
first read through, by streaming; it unpacks to exactly that or not at all, so memory is bounded by what the index says,
which a reader can know beforehand.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import xxhash

from headrace.errors import DamagedError
from headrace.formats.checking import Checked
from headrace.formats.columns import I64
from headrace.formats.index import Opened, RangedIndex, ShardIndex
from headrace.formats.unpacking import CODECS, UnpackError, unpack_exactly

AS_STORED = "as stored"
"""Of frames that the format unpacks itself."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One packed part of a shard."""

    num_samples: int
    offset: int
    """Where its packed bytes begin in the shard."""
    length: int
    """Of its packed bytes."""
    checksum: int
    """xxh3_64 of its packed bytes."""
    size: int
    """Of what it unpacks to, in bytes."""


class Frames:
    """All frames of a shard, in the order of its samples."""

    def __init__(self, codec: str, frames: Sequence[Frame]) -> None:
        """`codec` is one of `unpacking.CODECS`, or AS_STORED."""
        self.codec = codec
        self.frames = tuple(frames)
        self.starts = [0]
        """Frame k has the samples starts[k] .. starts[k + 1] - 1."""
        for frame in self.frames:
            self.starts.append(self.starts[-1] + frame.num_samples)

    @property
    def nbytes(self) -> int:
        """Memory that this takes, in bytes, about."""
        return 200 * len(self.frames)

    @property
    def unpacked_bytes(self) -> int:
        """What all frames unpack to."""
        return sum(frame.size for frame in self.frames)

    def sizes_of_samples(self) -> I64:
        """For each sample, the unpacked size of the frame it lies in."""
        sizes = np.array([frame.size for frame in self.frames], np.int64)
        return np.repeat(sizes, [frame.num_samples for frame in self.frames])

    def frame_of(self, sample: int) -> int:
        """The number of the frame that a sample lies in."""
        return bisect_right(self.starts, sample) - 1

    def extent(self, first: int, last: int) -> tuple[int, int]:
        """(offset, length) of the frames that hold samples first .. last-1."""
        if first >= last:
            return 0, 0
        begin, end = self.frames[self.frame_of(first)], self.frames[self.frame_of(last - 1)]
        return begin.offset, end.offset + end.length - begin.offset

    def unpacked(self, first: int, last: int, data: memoryview) -> dict[int, memoryview]:
        """The frames of samples first .. last-1, by number, out of what the shard holds at their extent.

        Raises DamagedError if a checksum differs or a frame does not unpack.
        """
        if first >= last:
            return {}
        numbers = range(self.frame_of(first), self.frame_of(last - 1) + 1)
        base = self.frames[numbers[0]].offset
        return {k: self._unpack(self.frames[k], data, base) for k in numbers}

    def pieces(self, index: RangedIndex) -> tuple[ShardIndex, ...]:
        """Each frame as a piece of the shard."""
        return tuple(FramePiece(index, self, k) for k in range(len(self.frames)))

    def to_json(self) -> dict[str, Any]:
        """A JSON object of the frames."""
        rows = [[frame.num_samples, frame.offset, frame.length, frame.checksum, frame.size] for frame in self.frames]
        return {"codec": self.codec, "frames": rows}

    @classmethod
    def from_json(cls, value: Checked, num_samples: int, shard_bytes: int) -> Frames:
        """The frames of a JSON object, checked. Raises ManifestError."""
        if value["codec"].text() not in (*CODECS, AS_STORED):
            raise value["codec"].error(f"must be one of {', '.join(CODECS)} or {AS_STORED}")
        found = cls(value["codec"].text(), [_frame(row) for row in value["frames"].elements()])
        at = 0
        for frame in found.frames:
            if frame.offset < at or frame.offset + frame.length > shard_bytes:
                raise value["frames"].error(f"must lie one behind the other in the shard's {shard_bytes:,} bytes")
            at = frame.offset + frame.length
        if found.starts[-1] != num_samples or not found.frames:
            raise value["frames"].error(f"must add up to the index's {num_samples:,} samples")
        return found

    def _unpack(self, frame: Frame, data: memoryview, base: int) -> memoryview:
        at = frame.offset - base
        packed = data[at : at + frame.length]
        checksum = xxhash.xxh3_64_intdigest(packed)
        if checksum != frame.checksum:
            raise DamagedError(
                f"the checksum of its {frame.length:,} bytes from {frame.offset:,} on is {checksum:016x}, not "
                f"{frame.checksum:016x}"
            )
        if self.codec == AS_STORED:
            return packed
        try:
            return unpack_exactly(packed, self.codec, frame.size)
        except UnpackError as err:
            raise DamagedError(f"what is packed in it does not unpack ({err})") from err


class FramePiece(ShardIndex):
    """One frame of a shard, with its samples numbered from 0."""

    is_ranged = False
    format: ClassVar[str] = "records"

    def __init__(self, index: RangedIndex, frames: Frames, number: int) -> None:
        self.shard_bytes = index.shard_bytes
        self._index, self._frames, self._number = index, frames, number
        self._first = frames.starts[number]

    @property
    def num_samples(self) -> int:
        return self._frames.frames[self._number].num_samples

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def sample_bytes(self) -> I64:
        return self._index.sample_bytes[self._first : self._first + self.num_samples]

    def key(self, i: int) -> str:
        return self._index.key(self._first + i)

    def extent(self, first: int, last: int) -> tuple[int, int]:
        return self._frames.extent(self._first + first, self._first + last)

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        return _Shifted(self._index.open(self._first + first, self._first + last, data), self._first)


class OpenedFrames(Opened):
    """Samples out of unpacked frames."""

    def __init__(
        self, index: RangedIndex, frames: Frames, damage: Mapping[int, str], unpacked: Mapping[int, memoryview]
    ) -> None:
        """`unpacked` are the frames by number."""
        self.damage = damage
        self.num_bytes = sum(map(len, unpacked.values()))
        self._index, self._frames, self._unpacked = index, frames, unpacked

    def sample(self, i: int) -> dict[str, Any]:
        return self._index.sample(i, self._unpacked[self._frames.frame_of(i)], 0)


class _Shifted(Opened):
    """Samples of a shard, numbered from the first of its piece."""

    def __init__(self, opened: Opened, first: int) -> None:
        self.damage = {i - first: reason for i, reason in opened.damage.items()}
        self.num_bytes = opened.num_bytes
        self._opened, self._first = opened, first

    def sample(self, i: int) -> dict[str, Any]:
        return self._opened.sample(i + self._first)


def _frame(row: Checked) -> Frame:
    numbers = row.elements()
    if len(numbers) != 5:
        raise row.error("must be [samples, offset, length, checksum, size]")
    checksum = numbers[3].value
    if type(checksum) is not int or not 0 <= checksum < 2**64:
        raise numbers[3].error("must be a 64-bit checksum")
    count, offset, length, size = (numbers[k].integer() for k in (0, 1, 2, 4))
    return Frame(count, offset, length, checksum, size)
