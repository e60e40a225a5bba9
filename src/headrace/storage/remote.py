"""A file in a store, read by ranges; and its bytes in order, with several requests under way."""

from __future__ import annotations

import io

import numpy as np

from headrace.errors import DamagedError
from headrace.storage.ahead import Ahead
from headrace.storage.file import STREAM_BYTES, File
from headrace.storage.place import Place
from headrace.storage.retrying import ReadOptions, persist
from headrace.storage.store import Refused, Short, Trouble
from headrace.storage.stores import check_not_forked, store_for


class RemoteFile(File):
    """An open file in a store. Safe to use from several threads; not to be pickled.

    Nothing is asked of the store until it must be: with a known `size`, not even whether the file is there.
    """

    is_remote = True

    def __init__(
        self,
        place: Place,
        size: int | None = None,
        options: ReadOptions | None = None,
        version: str | None = None,
    ) -> None:
        """`size` in bytes, where it is known (from a manifest, say), and the content's version: reading checks them.

        Raises DamagedError if the file is missing, StorageError if the store refuses or does not answer in time.
        """
        self.place, self.name = place, str(place)
        self._options = options
        self._store = store_for(place)
        self._is_closed = False
        self._version = version
        self._size = (
            persist("read", place, options, lambda limit: self._store.size(place, limit)) if size is None else size
        )

    @property
    def size(self) -> int:
        """The file's length in bytes, when it was opened."""
        return self._size

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the writable buffer with the bytes from `offset` on. What a failed attempt has brought is kept.

        Raises DamagedError if the file is missing, ends before the buffer is full or is not what it was when opened;
        StorageError if the store refuses, or does not send everything before the deadline.
        """
        check_not_forked()
        view = memoryview(buffer).cast("B")
        self._check_within(offset + len(view))
        if not len(view):
            return
        done = 0

        def fill(limit: float) -> None:
            nonlocal done
            self._check_open()
            answer = self._store.get_range(self.place, offset + done, offset + len(view), limit)
            if answer.file_size not in (None, self._size):
                raise _Changed(f"{answer.file_size:,} bytes found, {self._size:,} expected")
            if self._version is not None and answer.version != self._version:
                raise _Changed("it was written anew in the meantime")
            for chunk in answer.chunks:
                if done + len(chunk) > len(view):
                    raise Refused("the store sent more than it was asked for")
                view[done : done + len(chunk)] = chunk
                done += len(chunk)
            if done < len(view):
                raise Trouble(f"{done:,} bytes came of {len(view):,}")

        persist("read", self.place, self._options, fill)

    def read(self, offset: int, length: int) -> memoryview:
        """The bytes of one range, in a buffer of their own. Errors as for `read_into`."""
        self._check_within(offset + length)  # before the buffer is made: a wrong length could ask for all memory
        buffer = np.empty(length, np.uint8).data
        self.read_into(offset, buffer)
        return buffer

    def stream(self) -> io.BufferedReader:
        """The file's bytes from its start on, for one reader that goes forward; 32 MiB are read ahead of it."""
        return io.BufferedReader(Ahead(self), STREAM_BYTES)

    def close(self) -> None:
        """Close the file; reading afterwards is an error, and reads under way end. Closing twice is not."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise Refused("the file is closed")

    def _check_within(self, needed: int) -> None:
        if needed > self._size:
            raise DamagedError(f"{self.name} is cut short: at least {needed:,} bytes expected, {self._size:,} found")


class _Changed(Short):
    """The file is not the one that was opened."""

    def error(self, action: str, place: Place) -> DamagedError:
        return DamagedError(f"{place} is not the file it was: {self}; restore it, or make the dataset again")
