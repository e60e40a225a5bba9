"""Sorting more byte strings than memory should hold: sorted runs in nameless temporary files, then merges of them."""

from __future__ import annotations

import heapq
import struct
import tempfile
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import IO

from headrace.packing.nearest import nearest_folder
from headrace.storage import storage_refusals

MEMORY_BYTES = 48 << 20
"""Of the strings that are sorted at a time, with what Python needs for each."""
MOST_RUNS = 64
"""Of one length; so many are merged into one, so that neither descriptors nor buffers grow with what is sorted."""

_OBJECT_BYTES = 48
_BUFFER_BYTES = 256 << 10
_LENGTH = struct.Struct("<I")


def sorted_strings(
    strings: Iterable[bytes], folder: Path, memory_bytes: int = MEMORY_BYTES
) -> Generator[bytes, None, None]:
    """The strings in order of their bytes. All are taken before the first is given.

    What memory does not hold waits in nameless files on the disk of `folder`, or of the nearest one above it.
    """
    runs = _Runs(folder)
    part: list[bytes] = []
    num_bytes = 0
    try:
        for string in strings:
            part.append(string)
            num_bytes += len(string) + _OBJECT_BYTES
            if num_bytes > memory_bytes:
                part.sort()
                runs.add(part)
                part, num_bytes = [], 0
        part.sort()
        yield from heapq.merge(*runs.read(), part) if runs else part
    finally:
        runs.close()


class _Runs:
    """Sorted runs; those of one level are about equally long."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._levels: list[list[IO[bytes]]] = []

    def __bool__(self) -> bool:
        return bool(self._levels)

    def add(self, strings: Iterable[bytes], level: int = 0) -> None:
        """Write a run of strings that are in order."""
        run = _written(strings, self._folder)
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(run)
        if len(self._levels[level]) >= MOST_RUNS:
            self.add(heapq.merge(*self._read(level)), level + 1)
            _close(self._levels[level])

    def read(self) -> list[Iterator[bytes]]:
        """The strings of each run."""
        return [strings for level in range(len(self._levels)) for strings in self._read(level)]

    def close(self) -> None:
        for runs in self._levels:
            _close(runs)

    def _read(self, level: int) -> list[Iterator[bytes]]:
        return [_strings(run, self._folder) for run in self._levels[level]]


def _close(runs: list[IO[bytes]]) -> None:
    while runs:
        runs.pop().close()


def _written(strings: Iterable[bytes], folder: Path) -> IO[bytes]:
    with storage_refusals("write a temporary file in", folder):
        run = tempfile.TemporaryFile(dir=nearest_folder(folder), buffering=_BUFFER_BYTES)  # noqa: SIM115
        try:
            for string in strings:
                run.write(_LENGTH.pack(len(string)))
                run.write(string)
            run.seek(0)
        except BaseException:
            run.close()
            raise
    return run


def _strings(run: IO[bytes], folder: Path) -> Iterator[bytes]:
    with storage_refusals("read a temporary file in", folder):
        while head := run.read(_LENGTH.size):
            yield run.read(_LENGTH.unpack(head)[0])
