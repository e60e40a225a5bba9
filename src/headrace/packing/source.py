"""What is packed, whatever it is: numbered samples whose keys are known beforehand, and a digest of it all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import DatasetError, SourceError, TransformError
from headrace.formats import Encoded
from headrace.storage import quoted

BAD_SAMPLE = (SourceError, DatasetError, TransformError)
"""What a broken sample raises, as opposed to a disk that is full."""
WAY_OUT = "; fix or remove it, or pass over such samples with on_error='skip' (--on-error skip)"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sample that is passed over, and why."""

    key: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """A line of the list of skipped samples."""
        return {"key": self.key, "reason": self.reason}


class Source(ABC):
    """Samples by number. A source has been looked through when it is made; samples are read when asked for."""

    keys: Sequence[str]
    """They decide split and order."""
    identity: str
    """Digest of content and transform, as far as it is known without reading all samples."""
    classes: tuple[str, ...] | None = None
    skipped: Sequence[Skipped] = ()
    """What looking through the source found broken, with on_error="skip"."""

    @abstractmethod
    def encoded(self, i: int) -> list[Encoded]:
        """Sample i as it will lie in shards: none, one or several. May be called from several threads.

        Raises SourceError, DatasetError or TransformError if it is broken.
        """

    @abstractmethod
    def size(self, i: int) -> int:
        """About how many bytes of memory sample i takes."""

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


def is_clean(name: str) -> bool:
    """Whether a name is valid UTF-8 without line breaks and other control characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(ord(char) < 32 or ord(char) == 127 for char in name)
