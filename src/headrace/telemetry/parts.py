"""A log of lines in parts: the file that is written to, and beside it those that grew full, numbered.

`events.jsonl` that has grown full becomes `events-0001.jsonl`, and a new `events.jsonl` begins. A reader sees one log,
of which a place is a number of bytes from its beginning, whatever part that lies in. A part is made by a second name
for the full file and a rename over the first, so that at no moment, and after no crash, a line is missing or
`events.jsonl` is; until the rename the last part and the file are one, which readers know by its inode.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from glob import escape
from pathlib import Path
from typing import BinaryIO

PART_BYTES = 256 << 20
"""How large a file grows before the next one begins: about half a million steps."""
_CHUNK_BYTES = 1 << 20


def part_paths(path: Path) -> list[Path]:
    """The full parts of a log that is written to `path`, oldest first."""
    found = path.parent.glob(f"{escape(path.stem)}-*{escape(path.suffix)}")
    return sorted((part for part in found if _number(part).isdecimal()), key=lambda part: int(_number(part)))


def begin_part(path: Path) -> int:
    """Make the file at `path` the next part and begin a new one; its descriptor.

    For the one process that writes, between two lines. Raises OSError; the file is written on then.
    """
    parts = part_paths(path)
    fresh = path.with_name(f"{path.name}.new")
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(fresh, flags, 0o644)
    try:
        if not (parts and parts[-1].samefile(path)):  # else a crash came between the two
            number = int(_number(parts[-1])) + 1 if parts else 1
            os.link(path, path.with_name(f"{path.stem}-{number:04d}{path.suffix}"))
        fresh.replace(path)
    except OSError:
        os.close(fd)
        fresh.unlink(missing_ok=True)
        raise
    return fd


def num_bytes(path: Path) -> int:
    """The size of the whole log; 0 where there is none."""
    try:
        with ExitStack() as stack:
            return sum(os.fstat(file.fileno()).st_size for file in _opened(path, stack))
    except FileNotFoundError:
        return 0


def read_lines(path: Path, at: int = 0) -> Iterator[bytes]:
    """The lines of the whole log from byte `at` on, where one begins; the last may have no end yet. Raises OSError."""
    with ExitStack() as stack:
        for file in _opened(path, stack):
            size = os.fstat(file.fileno()).st_size
            file.seek(min(at, size))
            at = max(0, at - size)
            yield from _lines(file)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    torn = b""
    while chunk := file.read(_CHUNK_BYTES):
        *lines, torn = (torn + chunk).split(b"\n")
        yield from (line + b"\n" for line in lines)
    if torn:
        yield torn


def _opened(path: Path, stack: ExitStack) -> list[BinaryIO]:
    """All files of the log as they are at one moment, oldest first."""
    while True:
        parts = part_paths(path)
        file = stack.enter_context(path.open("rb"))
        if part_paths(path) == parts:
            break  # no part began meanwhile, so these and the file are the whole
    files, seen = [], {_identity(file)}
    for part in reversed(parts):
        older = stack.enter_context(part.open("rb"))
        if _identity(older) not in seen:
            seen.add(_identity(older))
            files.append(older)
    return [*reversed(files), file]


def _identity(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _number(part: Path) -> str:
    return part.stem.rpartition("-")[2]
