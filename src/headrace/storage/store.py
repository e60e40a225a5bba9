"""What every kind of store can do: the few verbs that all the rest is made of.

A store's methods try once, within a time limit. What went wrong is told apart by the failures below, so that retrying,
deadlines and messages are the same for all stores. A failure holds words that may be shown, never the foreign library's
own exception: its text may have a signed URL or a key in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import DamagedError, HeadraceError, StorageError
from headrace.storage.place import Place

Data = bytes | bytearray | memoryview


class Entry(NamedTuple):
    """What a listing says of one file or folder."""

    name: str
    """Its name in the folder; in a `walk`, its path below the folder."""
    size: int
    """Bytes; 0 for a folder."""
    is_folder: bool


class Version(NamedTuple):
    """A file's content, and the store's mark of this version of it (None where the store gives none)."""

    data: bytes
    mark: Any


class Range(NamedTuple):
    """The answer to a range request: the bytes as they come, and what the store says of the whole file."""

    file_size: int | None
    chunks: Iterator[Data]
    version: str | None = None
    """Which content it is: another one has another, where the store says it."""


class Failure(Exception):  # noqa: N818  # it is told apart by kind, and never leaves this room
    """Why one attempt failed, in words that may be shown."""

    def error(self, action: str, place: Place) -> HeadraceError:
        """The error to raise when there is no further attempt."""
        return StorageError(f"cannot {action} {place}: {self}")


class Trouble(Failure):
    """It may pass: a 5xx, a reset, a time limit, a body that ended early."""


class Refused(Failure):
    """It will not pass."""


class Missing(Failure):
    """There is no such file (or bucket, or container)."""

    def error(self, action: str, place: Place) -> HeadraceError:
        return DamagedError(f"{place} is missing: restore it, or make the dataset again{_in_brackets(self)}")


class Short(Failure):
    """The file ends before the range that was asked for."""

    def error(self, action: str, place: Place) -> HeadraceError:
        return DamagedError(f"{place} is cut short: {self}")


class Denied(Failure):
    """The store wants other credentials; the words name the variables, never their values."""


class Store(ABC):
    """One bucket, container or host. Safe to use from several threads; belongs to the process that made it.

    `limit` is the number of seconds that the attempt may take. Every method raises a Failure for what went wrong.
    """

    @abstractmethod
    def size(self, place: Place, limit: float) -> int:
        """The file's length in bytes."""

    def version(self, place: Place, limit: float) -> tuple[int, str | None]:
        """The file's length in bytes, and which content it is: another one has another. None: the store says nothing
        that can be relied on."""
        return self.size(place, limit), None

    @abstractmethod
    def get(self, place: Place, limit: float) -> Version:
        """All of a file."""

    @abstractmethod
    def get_range(self, place: Place, start: int, end: int, limit: float) -> Range:
        """The bytes from `start` to before `end`. The chunks may fail, too, or end early."""

    @abstractmethod
    def put(self, place: Place, data: Data, limit: float) -> None:
        """Write a file whole or not at all."""

    @abstractmethod
    def create(self, place: Place, data: Data, limit: float) -> bool:
        """Write a file unless the name is taken: then False."""

    @abstractmethod
    def replace(self, place: Place, data: Data, mark: Any, limit: float) -> bool:
        """Write a file if it still is the version of this mark, else False."""

    @abstractmethod
    def heeds_conditions(self, probe: Place, limit: float) -> bool:
        """Whether `create` and `replace` are exact here, tried on a file that is not there before or after."""

    @abstractmethod
    def upload(self, path: Path, place: Place, limit: float) -> None:
        """Write a file from the local disk, in parts where it is large; the limit holds for each part."""

    @abstractmethod
    def entries(self, place: Place, limit: float) -> list[Entry]:
        """What lies directly in a folder, in any order; nothing where there is no such folder."""

    @abstractmethod
    def walk(self, place: Place, after: str, limit: float) -> Iterator[list[Entry]]:
        """The files below a folder whose path below it comes after `after` (empty: all), in that order, by pages."""

    @abstractmethod
    def is_file(self, place: Place, limit: float) -> bool:
        """Whether there is a file."""

    @abstractmethod
    def is_folder(self, place: Place, limit: float) -> bool:
        """Whether anything lies below this name."""

    @abstractmethod
    def remove(self, place: Place, limit: float) -> None:
        """Remove a file; one that is not there is fine."""


def _in_brackets(failure: Failure) -> str:
    words = str(failure)
    return f" ({words})" if words else ""
