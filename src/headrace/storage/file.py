"""A file open for reading by ranges, wherever it lies."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from types import TracebackType
from typing import NoReturn, Self

from headrace.storage.place import Place

STREAM_BYTES = 1 << 20
"""What sequential reading asks for at a time."""


class File(ABC):
    """An open file. Safe to use from several threads; not to be pickled."""

    place: Place
    name: str
    """What it is called in messages."""
    is_remote: bool = False

    @property
    @abstractmethod
    def size(self) -> int:
        """The file's length in bytes."""

    @abstractmethod
    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the writable buffer with the bytes from `offset` on.

        Raises DamagedError if the file ends before the buffer is full, StorageError if the store refuses.
        """

    @abstractmethod
    def read(self, offset: int, length: int) -> memoryview:
        """The bytes of one range, in a buffer of their own. Errors as for `read_into`."""

    @abstractmethod
    def close(self) -> None:
        """Close the file; reading afterwards is an error. Closing twice is not."""

    def expect(self, offset: int, length: int) -> None:  # noqa: B027
        """Say that a range will be read soon, so that it may be fetched meanwhile. Nothing waits for it."""

    def is_in_memory(self, offset: int) -> bool:
        """Whether the byte there is surely read without waiting for a disk or a network."""
        return False

    def forget(self, offset: int, length: int) -> None:  # noqa: B027
        """Drop what is kept of a range that turned out to be damaged, so that reading it again asks the store.

        Nothing is kept, unless the file says otherwise.
        """

    def stream(self) -> io.BufferedReader:
        """The file's bytes from its start on, for one reader that goes forward."""
        return io.BufferedReader(_Sequence(self), STREAM_BYTES)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open file is not passed to another process: pass its place, and open it there")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Sequence(io.RawIOBase):
    """A file read from its start on. Closing it leaves the file open."""

    def __init__(self, file: File) -> None:
        self._file, self._at, self._size = file, 0, file.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # whatever can be written to
        view = memoryview(buffer).cast("B")
        length = min(len(view), self._size - self._at)
        if length:
            self._file.read_into(self._at, view[:length])
        self._at += length
        return length
