"""What is packed, whatever it is: records, gone through once in the source's own order, and what makes samples of them.

A record is small where its sample can be read again at any time (a reference to files, or to a sample of a dataset),
else it holds the sample itself. Which of both, only the source and its loader know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Any

from headrace.dataset.walk import is_clean
from headrace.errors import DatasetError, HeadraceError, SourceError, TransformError
from headrace.formats import CLASS_FIELD
from headrace.packing.spool import Record
from headrace.storage import quoted

Sample = dict[str, Any]
"""`__key__` and fields by name."""

BAD_SAMPLE = (SourceError, DatasetError, TransformError)
"""What a broken sample raises, as opposed to a disk that is full."""
_WAY_OUT = "; fix or remove it, or pass over such samples with on_error='skip' (--on-error skip)"


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that is broken, and why."""

    key: str
    error: HeadraceError

    def raised(self) -> HeadraceError:
        """The error with the way out of it."""
        error = type(self.error)(f"{self.error}{_WAY_OUT}")
        for note in getattr(self.error, "__notes__", ()):
            error.add_note(note)
        return error


class Loader(ABC):
    """Makes samples of a source's records. Safe to use from several threads, and picklable."""

    @property
    def waits(self) -> bool:
        """Whether samples are read over a network, so that many requests in flight pay."""
        return False

    @abstractmethod
    def load(self, key: str, payload: bytes) -> Sample:
        """The sample of a record. Raises SourceError, DatasetError or TransformError if it is broken."""

    @abstractmethod
    def origin(self, key: str, payload: bytes, field: str) -> str:
        """What to call a field of the sample in an error: its file, say."""


class Source(ABC):
    """Something to pack."""

    title: str
    """What it is called in messages."""
    loader: Loader
    classes: tuple[str, ...] | None = None
    """Names of the classes that the integers in the field `class_field` stand for."""
    class_field: str = CLASS_FIELD
    images: frozenset[str] = frozenset()
    """Fields that hold encoded images whatever their name says."""
    fields: Set[str] | None = None
    """Names of the fields that samples may have, if that is known before any is read; `NAME.*` has any extension."""
    num_records: int | None = None
    """How many records there will be, if that is known."""

    @abstractmethod
    def records(self) -> Iterator[Record | Bad]:
        """Every sample, in the source's own order. May be asked for once."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Digest of the content, as far as it is known without reading all samples; known behind `records`."""

    def close(self) -> None:  # noqa: B027
        """Let go of what the source holds open; nothing, unless it says otherwise."""


def check_key(key: Any, where: str) -> str:
    """A sample's key, if it can be one. Raises SourceError."""
    if not isinstance(key, str) or not key:
        raise SourceError(f"{where}: `__key__` must be text that is not empty, got {key!r}")
    if not is_clean(key):
        raise SourceError(
            f"{where}: the key {quoted(key)} holds a line break, a control character or what is not UTF-8; rename it"
        )
    return key
