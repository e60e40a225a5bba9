"""Pieces that are unpacked as a whole (compressed shards, row groups), shared by all runs that lie in them.

A piece stays as long as some run holds it; runs of several partitions may lie in one piece, which is then read once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from weakref import WeakValueDictionary

from headrace.dataset import Dataset, Joined, open_run
from headrace.formats import Opened, ShardIndex
from headrace.load.files import OpenFiles
from headrace.telemetry import Meter


class WholePieces:
    """Opened pieces by number. Thread-safe; a piece that several threads want at once is read by one of them."""

    def __init__(self, dataset: Dataset | Joined, files: OpenFiles, meters: Mapping[str, Meter]) -> None:
        self._dataset, self._files, self._meters = dataset, files, meters
        self._opened: WeakValueDictionary[int, Opened] = WeakValueDictionary()
        self._locks: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, piece: int, index: ShardIndex, shard: int) -> Opened:
        """All samples of a piece. Raises DamagedError if it cannot be unpacked."""
        with self._lock:
            lock = self._locks.setdefault(piece, threading.Lock())
        with lock:
            opened = self._opened.get(piece)
            if opened is None:
                opened = self._opened[piece] = self._read(index, shard)
        with self._lock:
            self._locks.pop(piece, None)
        return opened

    def _read(self, index: ShardIndex, shard: int) -> Opened:
        began = time.perf_counter()
        opened = open_run(self._files.get(shard), index, 0, index.num_samples)
        size = sum(part.length for part in index.ranges(0, index.num_samples))
        self._meters["read"].add(items=index.num_samples, num_bytes=size, busy_sec=time.perf_counter() - began)
        return opened
