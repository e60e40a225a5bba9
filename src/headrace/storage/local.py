"""A file on the local disk, read by ranges.

`preadv` into a buffer that the caller owns: no copy, no shared file position, so threads may read one file at once. Not
mmap: a page fault hides a random read, and a file that was cut short becomes a SIGBUS instead of an error.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from headrace.errors import DamagedError
from headrace.storage.file import File
from headrace.storage.place import Place, quoted
from headrace.storage.refusal import storage_refusals


def open_regular(path: str, flags: int) -> int:
    """A descriptor of an ordinary file, as `opener` of `open` too. Raises OSError for all else.

    Opening a pipe would wait for a writer for ever, and a device need not end.
    """
    fd = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not an ordinary file, but a folder, a pipe or a device")
    return fd


class LocalFile(File):
    """An open file on the local disk. Safe to use from several threads; not to be pickled."""

    def __init__(self, path: str | os.PathLike[str] | Place) -> None:
        """Raises DamagedError if the file is missing, StorageError if it may not be read."""
        self.place = path if isinstance(path, Place) else Place(os.fspath(path), "file")
        self.path = os.fspath(self.place.path if isinstance(path, Place) else path)
        self.name = quoted(self.path)
        with storage_refusals("read", self.path):
            try:
                self._fd = open_regular(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as err:
                raise DamagedError(f"{quoted(self.path)} is missing: restore it, or make the dataset again") from err

    @property
    def size(self) -> int:
        """The file's length in bytes, now."""
        return os.fstat(self._fd).st_size

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the writable buffer with the bytes from `offset` on.

        Raises DamagedError if the file ends before the buffer is full.
        """
        view = memoryview(buffer).cast("B")
        done = 0
        with storage_refusals("read", self.path):
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if count == 0:
                    raise DamagedError(self._cut_short(offset + len(view)))
                done += count

    def expect(self, offset: int, length: int) -> None:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # it is a hint, which some file systems do not take
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def is_in_memory(self, offset: int) -> bool:
        try:
            return os.preadv(self._fd, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
        except OSError:  # it would have to wait, or the file system cannot tell
            return False

    def read(self, offset: int, length: int) -> memoryview:
        """The bytes of one range, in a buffer of their own. Errors as for `read_into`."""
        if offset + length > self.size:  # before the buffer is made: a wrong length could ask for all memory
            raise DamagedError(self._cut_short(offset + length))
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return memoryview(buffer)

    def read_all(self) -> bytes:
        """All bytes, without a copy on the way. Errors as for `read_into`."""
        parts, done, size = [], 0, self.size
        with storage_refusals("read", self.path):
            while done < size:
                parts.append(os.pread(self._fd, size - done, done))
                if not parts[-1]:
                    raise DamagedError(self._cut_short(size))
                done += len(parts[-1])
        return b"".join(parts)

    def drop_cached(self) -> None:
        """Have the kernel forget what memory holds of the file, so that it is read from the disk again.

        It is a wish: what is not written yet stays, and a file system in memory has no disk.
        """
        with storage_refusals("read", self.path):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; reading afterwards is an error. Closing twice is not."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        # A file in use by one thread may be let go by another; it closes with its last holder.
        if hasattr(self, "_fd"):
            self.close()

    def _cut_short(self, needed: int) -> str:
        return f"{quoted(self.path)} is cut short: at least {needed:,} bytes expected, {self.size:,} found"
