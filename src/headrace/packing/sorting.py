"""Sorting more byte strings than memory should hold: sorted runs in nameless temporary files, then one merge."""

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

_OBJECT_BYTES = 48
_BUFFER_BYTES = 256 << 10
_LENGTH = struct.Struct("<I")


def sorted_strings(
    strings: Iterable[bytes], folder: Path, memory_bytes: int = MEMORY_BYTES
) -> Generator[bytes, None, None]:
    """The strings in order of their bytes. All are taken before the first is given.

    What memory does not hold waits in nameless files on the disk of `folder`, or of the nearest one above it.
    """
    runs: list[IO[bytes]] = []
    part: list[bytes] = []
    num_bytes = 0
    try:
        for string in strings:
            part.append(string)
            num_bytes += len(string) + _OBJECT_BYTES
            if num_bytes > memory_bytes:
                runs.append(_written(sorted(part), folder))
                part, num_bytes = [], 0
        part.sort()
        yield from heapq.merge(*(_read(run, folder) for run in runs), part) if runs else part
    finally:
        for run in runs:
            run.close()


def _written(strings: list[bytes], folder: Path) -> IO[bytes]:
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


def _read(run: IO[bytes], folder: Path) -> Iterator[bytes]:
    with storage_refusals("read a temporary file in", folder):
        while head := run.read(_LENGTH.size):
            yield run.read(_LENGTH.unpack(head)[0])
