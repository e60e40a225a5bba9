"""What one pass over a source found, on disk: records in nameless temporary files, read back in their final order.

A record is a sample, or where to find it. Records are scattered while they are written: each goes into one of 64
buckets by the first bits of the hash that orders it. A bucket's records lie together in long runs of the file, so that
reading bucket after bucket goes through the file in large pieces, however well the order mixes; a bucket that is larger
than memory is scattered once more. No object is kept for a record: a bucket's table of hashes and places lies in the
file too, behind the records it speaks of.

The files have no name: they vanish with this process, however that ends.
"""

from __future__ import annotations

import os
import struct
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.packing.nearest import nearest_folder
from headrace.storage import storage_refusals, write_all

BUCKET_BYTES = 512 << 20
"""A bucket larger than this is scattered again, so that the part that is read at a time stays in the page cache."""
BUCKET_ENTRIES = 1 << 21
"""And so is one of more records: its table takes 32 bytes a record."""

_BUFFER_BYTES = 32 << 20
_SCATTER_BITS = 6
_HASH_BITS = 64
_HEAD = struct.Struct("<I")  # bytes of the key

ENTRY = np.dtype([("hash", "<u8"), ("offset", "<i8"), ("length", "<i8"), ("size", "<i8")])
Entries = npt.NDArray[Any]
"""Rows of ENTRY: the hash that orders a record, where it lies, and the memory its sample takes, in bytes."""


class Record(NamedTuple):
    """A sample, or where it is."""

    key: str
    payload: bytes
    size: int
    """About how many bytes of memory the sample takes."""


class SpoolFile:
    """A nameless file, gone when it is closed, or when nobody holds it any more. Reading is thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises StorageError if the disk of `folder`, or of the nearest one above it, takes no file."""
        self._folder = nearest_folder(folder)
        self.num_bytes = 0
        with (
            storage_refusals("write a temporary file in", self._folder),
            tempfile.TemporaryFile(dir=self._folder) as file,
        ):
            self._fd = os.dup(file.fileno())

    def append(self, data: bytes | bytearray | memoryview) -> int:
        """Write at the end; returns the offset."""
        with storage_refusals("write a temporary file in", self._folder):
            write_all(self._fd, data)
        at = self.num_bytes
        self.num_bytes += len(data)
        return at

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range."""
        with storage_refusals("read a temporary file in", self._folder):
            data = os.pread(self._fd, length, offset)
            while len(data) < length:  # the system reads no more than 2 GiB at once
                data += os.pread(self._fd, length - len(data), offset + len(data))
        return data

    def record(self, offset: int, length: int) -> tuple[str, bytes]:
        """Key and payload of the record at this place."""
        data = self.read(offset, length)
        end = _HEAD.size + _HEAD.unpack_from(data)[0]
        return data[_HEAD.size : end].decode(), data[end:]

    def read_ahead(self, offset: int, length: int) -> None:
        """Have the system read a range that will be wanted soon."""
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file, and with it remove it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


class Run(NamedTuple):
    """Records that come one after the other in the final order."""

    file: SpoolFile
    entries: Entries


class _Extent(NamedTuple):
    """Records that were written at once, and behind them their table."""

    offset: int
    num_bytes: int
    num_entries: int


@dataclass(slots=True)
class _Bucket:
    """Records whose hashes begin alike."""

    num_bytes: int = 0
    num_entries: int = 0
    extents: list[_Extent] = field(default_factory=list)
    records: bytearray = field(default_factory=bytearray)
    """Not written yet."""
    table: array[int] = field(default_factory=lambda: array("Q"))


class Spool:
    """Records of one or several parts, each part in its own order. Written by one thread, then read."""

    def __init__(self, folder: Path, num_parts: int, scatter: bool, shift: int = _HASH_BITS - _SCATTER_BITS) -> None:
        """`scatter` orders records by their hash, else they keep the order in which they come.

        `shift` says which bits of the hash choose the bucket.
        """
        self._folder, self._shift = folder, shift
        self._file = SpoolFile(folder)
        self._scatter = scatter
        num_buckets = 1 << _SCATTER_BITS if scatter else 1
        self._parts = [[_Bucket() for _ in range(num_buckets)] for _ in range(num_parts)]
        self._extent_bytes = _BUFFER_BYTES // (num_parts * num_buckets)

    def add(self, part: int, order_hash: int, record: Record) -> None:
        """Add a record to a part."""
        key = record.key.encode()
        self._add(part, order_hash, b"".join((_HEAD.pack(len(key)), key, record.payload)), record.size)

    def seal(self) -> None:
        """Write what waits in memory: from now on records are read."""
        for buckets in self._parts:
            for bucket in buckets:
                self._flush(bucket)

    def close(self) -> None:
        """Let go of the records."""
        self._file.close()

    def num_records(self, part: int) -> int:
        """How many records a part has."""
        return sum(bucket.num_entries for bucket in self._parts[part])

    def runs(self, part: int, first: int) -> Iterator[Run]:
        """The records of a part from number `first` on, in the final order, in runs of at most some million."""
        for bucket in self._parts[part]:
            if first >= bucket.num_entries:
                first -= bucket.num_entries
                continue
            for run in self._bucket_runs(bucket):
                if first < len(run.entries):
                    yield Run(run.file, run.entries[first:])
                first = max(0, first - len(run.entries))

    def _bucket_runs(self, bucket: _Bucket) -> Iterator[Run]:
        if not self._scatter:
            yield from (Run(self._file, self._table(extent)) for extent in bucket.extents)
        elif self._shift and (bucket.num_bytes > BUCKET_BYTES or bucket.num_entries > BUCKET_ENTRIES):
            yield from self._scattered(bucket).runs(0, 0)
        else:
            for extent in bucket.extents:
                self._file.read_ahead(extent.offset, extent.num_bytes)
            table = np.concatenate([self._table(extent) for extent in bucket.extents])
            yield Run(self._file, table[np.argsort(table["hash"], kind="stable")])

    def _scattered(self, bucket: _Bucket) -> Spool:
        finer = Spool(self._folder, 1, scatter=True, shift=max(0, self._shift - _SCATTER_BITS))
        for extent in bucket.extents:
            for order_hash, offset, length, size in self._table(extent).tolist():
                finer._add(0, order_hash, self._file.read(offset, length), size)
        finer.seal()
        return finer

    def _add(self, part: int, order_hash: int, record: bytes, size: int) -> None:
        number = order_hash >> self._shift & ((1 << _SCATTER_BITS) - 1) if self._scatter else 0
        bucket = self._parts[part][number]
        bucket.table.extend((order_hash, len(bucket.records), len(record), size))
        bucket.records += record
        bucket.num_bytes += len(record)
        bucket.num_entries += 1
        if len(bucket.records) + bucket.table.itemsize * len(bucket.table) > self._extent_bytes:
            self._flush(bucket)

    def _flush(self, bucket: _Bucket) -> None:
        if not bucket.table:
            return
        table = np.frombuffer(bucket.table, ENTRY).copy()
        offset = self._file.append(bucket.records)
        table["offset"] += offset
        self._file.append(table.tobytes())
        bucket.extents.append(_Extent(offset, len(bucket.records), len(table)))
        bucket.records, bucket.table = bytearray(), array("Q")

    def _table(self, extent: _Extent) -> Entries:
        data = self._file.read(extent.offset + extent.num_bytes, extent.num_entries * ENTRY.itemsize)
        return np.frombuffer(data, ENTRY)
