"""Where decoded samples are kept: a table with a record a sample, and behind it the samples, in the order they came.

    page 0            what the store is of
    table             for each sample of the dataset: where it lies, its length, its xxh3-64, and a seal of the three
    samples           appended; nothing is moved or removed

A record is written after what it points at, so whoever finds one finds the whole sample; a torn one has not its seal.
Readers take no lock. A writer takes room for several samples at a time, under a lock that its process's death frees.
Nothing is evicted: the samples that came first stay, so every epoch finds the same ones.

What goes wrong with a store is no error of the reader's: it takes nothing more, with one warning in each process.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
from abc import ABC, abstractmethod

from headrace.formats import sample_checksum
from headrace.load.decoded.encoding import Blob, aligned
from headrace.storage import quoted
from headrace.storage.cache.locks import Locks

HEADER_BYTES = 4096
LOT_BYTES, LOT_SHARE = 4 << 20, 64
"""Room is taken so much at a time, or a 64th of what the store may hold, whichever is less."""

_RECORD = struct.Struct("<QQQ")
_RECORD_BYTES = _RECORD.size + 8
_NO_RECORD = bytes(_RECORD_BYTES)
_TAKE_ROOM = 0
_log = logging.getLogger("headrace.load")


class UnsoundError(Exception):
    """What lies where a sample should is not that sample."""


def base_bytes(num_samples: int) -> int:
    """Where the samples begin in a store for so many of them."""
    return -(-(HEADER_BYTES + num_samples * _RECORD_BYTES) // HEADER_BYTES) * HEADER_BYTES


class Store(ABC):
    """A store that is open in this process. Thread-safe; shared with other processes."""

    def __init__(self, label: str, num_samples: int, max_bytes: int) -> None:
        """`max_bytes` is what it may hold, the table included. Who makes it sets `_fd`."""
        self._fd = -1
        self._label = label
        self._max_bytes = max_bytes
        self._base = base_bytes(num_samples)
        self._lot_at = self._lot_end = 0
        self._lock = threading.Lock()
        self.takes_more = True
        """False once it was full, or failed: what it holds can be read all the same."""

    def __del__(self) -> None:
        fd, self._fd = self.__dict__.get("_fd", -1), -1
        if fd >= 0:
            os.close(fd)

    def has_all(self, first: int, last: int) -> bool:
        """Whether it holds samples first .. last - 1 of the dataset."""
        records = self._records(first, last)
        return bool(records) and all(
            _is_whole(records[at : at + _RECORD_BYTES]) for at in range(0, len(records), _RECORD_BYTES)
        )

    def get(self, number: int) -> memoryview | None:
        """A sample's bytes; None if it is not there. Raises UnsoundError for a damaged one, which is then forgotten."""
        record = self._records(number, number + 1)
        if not record or not _is_whole(record):
            return None
        data = self._read(*_RECORD.unpack_from(record))
        if data is None:
            self._forget(number)
            raise UnsoundError
        return data

    def put(self, number: int, blob: Blob) -> bool:
        """Keep a sample, unless it is there; False where the store takes no more."""
        if not self.takes_more:
            return False
        if self.has_all(number, number + 1):
            return True
        try:
            offset = self._place(len(blob))
            if offset is None:
                self.takes_more = False
                return False
            _write(self._fd, offset, blob.data)
            record = _RECORD.pack(offset, len(blob), sample_checksum(blob.data))
            self._put_record(number, record + _seal(record))
        except OSError as err:
            self._fail(err)
        return self.takes_more

    def _place(self, num_bytes: int) -> int | None:
        """Room for a sample, out of what this process has taken or may take; None if there is none left."""
        size = aligned(num_bytes)
        with self._lock:
            if self._lot_at + size > self._lot_end and not self._take_lot(size):
                return None
            offset = self._lot_at
            self._lot_at += size
            return offset

    def _take_lot(self, least: int) -> bool:
        """Take room for some samples, or for one where there is no more; False if there is none. Raises OSError."""
        most = max(least, min(LOT_BYTES, self._max_bytes // LOT_SHARE))
        try:
            taken = self._take_room(most)
        except OSError:
            if most == least:
                raise
            taken = None
        if taken is None and most > least:
            most, taken = least, self._take_room(least)
        if taken is None:
            return False
        self._lot_at, self._lot_end = taken, taken + most
        return True

    def _take_room(self, num_bytes: int) -> int | None:
        with Locks(self._open_locks) as lock:
            lock.take(_TAKE_ROOM)
            return self._extend(num_bytes)

    def _open_locks(self) -> int:
        # By its descriptor: a file that was removed meanwhile is still shared by those who have it open.
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)

    @abstractmethod
    def _extend(self, num_bytes: int) -> int | None:
        """Move the end of what is taken by so many bytes; where it was, or None if there is no room.

        Called with the lock. Raises OSError, where there should be room and is not.
        """

    @abstractmethod
    def _read(self, offset: int, length: int, checksum: int) -> memoryview | None:
        """The bytes there; None if they cannot be what was written."""

    def _records(self, first: int, last: int) -> bytes:
        """Those of some samples; none where there is no such part of the table."""
        num_bytes = (last - first) * _RECORD_BYTES
        try:
            data = os.pread(self._fd, num_bytes, HEADER_BYTES + first * _RECORD_BYTES)
        except OSError as err:
            self._fail(err)
            return b""
        return data if len(data) == num_bytes else b""

    def _forget(self, number: int) -> None:
        try:
            self._put_record(number, _NO_RECORD)
        except OSError as err:
            self._fail(err)

    def _put_record(self, number: int, record: bytes) -> None:
        _write(self._fd, HEADER_BYTES + number * _RECORD_BYTES, memoryview(record))

    def _fail(self, err: OSError) -> None:
        with self._lock:
            if not self.takes_more:
                return
            self.takes_more = False
        _log.warning("%s", f"{quoted(self._label)} {_reason(err)}; what it holds stays in use")


def _is_whole(record: bytes) -> bool:
    return record[_RECORD.size :] == _seal(record[: _RECORD.size])


def _seal(record: bytes) -> bytes:
    """The seal of a record: never 0, so that a table of zeros has none."""
    return (sample_checksum(memoryview(record)) | 1).to_bytes(8, "little")


def _write(fd: int, offset: int, data: memoryview) -> None:
    while len(data):
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _reason(err: OSError) -> str:
    words = err.strerror or str(err)
    if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
        return f"takes no more decoded samples ({words}): make room, or give a smaller cache_decoded_size"
    return f"takes no more decoded samples ({words})"
