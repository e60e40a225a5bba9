"""What the stages are measured on: some of the stream's own reads, their bytes in memory, and the raw samples in them.

Reads are the runs of the stream's first epoch, in the order in which the feed would ask for them; a piece that is
unpacked as a whole is one read.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headrace.bench.rates import Cycle, Turn
from headrace.dataset import Dataset, Joined
from headrace.errors import DamagedError, OptionError
from headrace.formats import ShardIndex
from headrace.load import Stream
from headrace.load.buffers import BufferPool
from headrace.load.files import OpenFiles
from headrace.load.runs import fill
from headrace.storage import File, LocalFile
from headrace.transform import Sample

_MAX_BYTES = 64 << 20
_MAX_SAMPLES = 2048


class Read(NamedTuple):
    """Samples first .. last-1 of a piece, read in one go."""

    piece: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Held:
    """One read's bytes in memory."""

    read: Read
    index: ShardIndex
    data: memoryview

    @property
    def num_samples(self) -> int:
        """How many samples lie in it."""
        return self.read.last - self.read.first


class Reads:
    """A stream's reads, one after the other, over as many epochs as it takes. Thread-safe."""

    def __init__(self, dataset: Dataset | Joined, stream: Stream) -> None:
        """`dataset` is the stream's, or the same one behind a cache."""
        self._dataset = dataset
        self._files = OpenFiles(dataset)
        self._buffers = BufferPool(_MAX_BYTES)
        self._reads = _reads(dataset, stream)
        self._lock = threading.Lock()

    def turn(self) -> tuple[int, int]:
        """Make the next read and drop what it gave: (samples, bytes)."""
        with self._lock:
            read = next(self._reads)
        return self._make(read)

    def hold(self, wanted_samples: int, limit_sec: float) -> list[Held]:
        """The next reads with their bytes, none twice: `wanted_samples` or a little more, as far as there are so many,
        within 64 MiB and the time; one at least."""
        held: dict[Read, Held] = {}
        deadline = time.monotonic() + limit_sec
        wanted_samples = min(wanted_samples, len(self._dataset))
        num_samples = num_bytes = 0
        for read in self._reads:
            if read not in held:
                held[read] = self._hold(read)
                num_samples += held[read].num_samples
                num_bytes += len(held[read].data)
            if num_samples >= wanted_samples or num_bytes >= _MAX_BYTES or time.monotonic() >= deadline:
                break
        return list(held.values())

    def read_again(self, held: Sequence[Held]) -> Turn:
        """Makes reads that were made before, over and over."""
        cycle = Cycle(len(held))
        return lambda: self._make(held[cycle.next()].read)

    def _make(self, read: Read) -> tuple[int, int]:
        index = self._dataset.piece(read.piece)
        ranges = index.ranges(read.first, read.last)
        size = sum(part.length for part in ranges)
        buffer = self._buffers.take(size)
        fill(buffer.data[:size], self._file(read), ranges)
        self._buffers.give(buffer)
        return read.last - read.first, size

    def _hold(self, read: Read) -> Held:
        index = self._dataset.piece(read.piece)
        ranges = index.ranges(read.first, read.last)
        data = memoryview(bytearray(sum(part.length for part in ranges)))
        fill(data, self._file(read), ranges)
        return Held(read, index, data)

    def _file(self, read: Read) -> File:
        return self._files.get(self._dataset.pieces.place(read.piece)[0])


def raw_samples(held: list[Held]) -> list[Sample]:
    """The samples in them, 2,048 at most. Raises DamagedError, which names a sample, where one is damaged."""
    samples: list[Sample] = []
    for one in held:
        opened = one.index.open(one.read.first, one.read.last, one.data)
        for number, reason in opened.damage.items():
            raise DamagedError(
                f"sample {one.index.key(number)!r} is damaged: {reason}; headrace inspect --verify lists all damage"
            )
        samples += [opened.sample(i) for i in range(one.read.first, one.read.last)]
        if len(samples) >= _MAX_SAMPLES:
            break
    return samples[:_MAX_SAMPLES]


def check_can_be_cold(dataset: Dataset | Joined) -> None:
    """Raise OptionError for a dataset whose bytes this machine's page cache is not asked to forget."""
    if dataset.is_remote:
        raise OptionError(f"cold is for data on a local disk: {dataset.url} is read over a network; leave it out")
    with dataset.open_shard(dataset.pieces.place(0)[0]) as file:
        if not isinstance(file, LocalFile):
            raise OptionError(f"cold is for shards: {dataset.url} is a folder of files; pack it first (headrace pack)")


def make_cold(dataset: Dataset | Joined) -> None:
    """Have the kernel forget the shards, as far as they are on the disk."""
    for shard in dict.fromkeys(dataset.pieces.place(piece)[0] for piece in range(len(dataset.pieces))):
        with dataset.open_shard(shard) as file:
            assert isinstance(file, LocalFile)
            file.drop_cached()


def _reads(dataset: Dataset | Joined, stream: Stream) -> Iterator[Read]:
    order = stream.order(1)
    for epoch in itertools.count(stream.first_epoch):
        last_whole = -1
        for run in order.epoch(epoch).runs(0, 1):
            if not dataset.pieces.is_whole[run.piece]:
                yield Read(run.piece, run.first, run.last)
            elif run.piece != last_whole:
                last_whole = run.piece
                yield Read(run.piece, 0, int(dataset.pieces.samples[run.piece]))
