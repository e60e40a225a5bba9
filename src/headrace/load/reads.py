"""Reading samples from the disk straight to their places in a slot, and checking them there: one call a sample."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import HeadraceError
from headrace.formats import sample_checksum
from headrace.load.files import OpenFiles


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
