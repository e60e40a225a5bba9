"""From an open shard to checked samples."""

from __future__ import annotations

import threading
from typing import Any

from headrace.errors import DamagedError
from headrace.formats import Opened, ShardIndex
from headrace.formats.index import joined
from headrace.storage import File


def open_run(file: File, index: ShardIndex, first: int, last: int) -> Opened:
    """Samples first .. last-1 of a piece, read and checked.

    What a network or a cache may have garbled is read a second time before it counts as damaged.
    """
    ranges = index.ranges(first, last)
    for is_again in (False, True):
        data = joined(ranges, file.read)
        try:
            opened = index.open(first, last, data)
            if not opened.damage or is_again or not file.is_remote:
                return opened
        except DamagedError:
            if is_again or not file.is_remote:
                raise
        for part in ranges:
            file.forget(*part)
    raise AssertionError("the second time returns or raises")


class LastWhole:
    """The piece that was unpacked last, so that going through a compressed shard by number unpacks it once.

    Thread-safe; pickled empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[int, Opened] | None = None

    def get(self, piece: int) -> Opened | None:
        """The piece, if it is the one that is kept."""
        with self._lock:
            return self._kept[1] if self._kept is not None and self._kept[0] == piece else None

    def put(self, piece: int, opened: Opened) -> None:
        """Keep this piece instead."""
        with self._lock:
            self._kept = (piece, opened)

    def __reduce__(self) -> tuple[Any, ...]:
        return LastWhole, ()
