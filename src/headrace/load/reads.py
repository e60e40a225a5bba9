"""Reading samples from the disk straight to their places in a slot, and checking them there: one call a sample.

It keeps to what a reader needs, so that a process that only reads starts quickly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.dataset import Dataset, Joined
from headrace.errors import HeadraceError
from headrace.formats import sample_checksum
from headrace.load.channel import dumps
from headrace.load.files import OpenFiles
from headrace.load.marks import Doing, Lane
from headrace.load.slots import Slot


class Reads(NamedTuple):
    """Samples to read: columns, one row a sample."""

    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checksums: NDArray[np.uint64]
    places: NDArray[np.int64]
    """Where each goes in the slot."""


class Bad(NamedTuple):
    """A sample that was not read as it was written."""

    number: int
    """Of the row."""
    error: HeadraceError | None
    """None: its checksum differs."""


class Done(NamedTuple):
    """What came of some reads."""

    bad: list[Bad]
    read_sec: float
    verify_sec: float


def read_samples(files: OpenFiles, reads: Reads, view: memoryview) -> Done:
    """Fill the places in the slot that `view` shows."""
    bad: list[Bad] = []
    verify_sec, began, clock = 0.0, time.perf_counter(), time.perf_counter
    opened = {shard: files.get(shard) for shard in np.unique(reads.shards).tolist()}
    rows = zip(*(column.tolist() for column in reads), strict=True)
    for number, (shard, offset, length, checksum, place) in enumerate(rows):
        data = view[place : place + length]
        try:
            opened[shard].read_into(offset, data)
        except HeadraceError as err:
            bad.append(Bad(number, err))
            continue
        read = clock()
        if sample_checksum(data) != checksum:
            bad.append(Bad(number, None))
        verify_sec += clock() - read
    return Done(bad, time.perf_counter() - began - verify_sec, verify_sec)


class ReadOrder(NamedTuple):
    """What a process that reads is asked: some rows of the batch that begins at (epoch, position)."""

    epoch: int
    position: int
    generation: int
    """Another one than before says that shards may have been replaced."""
    reads: Reads


@dataclass
class ReadTask:
    """What a worker process does that reads a dataset's samples. It travels to the process."""

    dataset: Dataset | Joined
    _files: OpenFiles | None = field(default=None, init=False)
    _generation: int = field(default=-1, init=False)

    @property
    def num_lanes(self) -> int:
        """One thread reads."""
        return 1

    def answer(self, order: ReadOrder, slot: Slot, lanes: Sequence[Lane]) -> bytes:
        """Read what was asked into the slot; a pickled `Done`."""
        if self._files is None or order.generation != self._generation:
            self._files, self._generation = OpenFiles(self.dataset), order.generation
        lanes[0].mark(order.epoch, order.position, Doing.READ)
        done = read_samples(self._files, order.reads, slot.view().data)
        lanes[0].clear()
        return dumps(done)
