"""Reading JSON that may be wrong: every step down is checked, and an error says where it is and what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from headrace.errors import ManifestError
from headrace.storage import quoted

_T = TypeVar("_T")
_HEX_DIGEST = re.compile(r"[0-9a-f]{32}")
MAX_INTEGER = 2**63 - 1
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Checked:
    """A value out of a manifest, and the place it came from. Its readers raise ManifestError."""

    value: Any
    file: str
    place: str = ""

    @property
    def where(self) -> str:
        """The file and the place in it."""
        return f"{self.file}: {self.place}" if self.place else self.file

    def error(self, rule: str) -> ManifestError:
        """An error that says which value breaks which rule."""
        shown = repr(self.value)
        shown = shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + "..."
        return ManifestError(
            f"{quoted(self.file)} is malformed: {self.place or 'it'} {rule}, got {shown}; restore it, or make it again"
        )

    def __getitem__(self, name: str) -> Checked:
        child = self.get(name)
        if child.value is None:
            raise child.error("must be there")
        return child

    def get(self, name: str) -> Checked:
        """A member of an object, with the value None if it is not there."""
        if not isinstance(self.value, dict):
            raise self.error("must be an object")
        return Checked(self.value.get(name), self.file, f"{self.place}.{name}" if self.place else name)

    def items(self) -> Iterator[tuple[str, Checked]]:
        """The members of an object."""
        if not isinstance(self.value, dict):
            raise self.error("must be an object")
        for name in self.value:
            yield name, self.get(name)

    def elements(self) -> list[Checked]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            raise self.error("must be an array")
        return [Checked(item, self.file, f"{self.place}[{number}]") for number, item in enumerate(self.value)]

    def optional(self, read: Callable[[Checked], _T]) -> _T | None:
        """None for null, else what `read` makes of the value."""
        return None if self.value is None else read(self)

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            raise self.error("must be a string")
        return self.value

    def integer(self) -> int:
        """A whole number from 0 to 2^63 - 1."""
        if type(self.value) is not int or not 0 <= self.value <= MAX_INTEGER:
            raise self.error("must be a whole number, at least 0")
        return self.value

    def hex_digest(self) -> str:
        """32 lower-case hex digits."""
        if not _HEX_DIGEST.fullmatch(self.text()):
            raise self.error("must be 32 lower-case hex digits")
        return self.text()

    def file_name(self) -> str:
        """The name of a file in the dataset's folder, or in one below: a manifest must not reach outside it."""
        name = self.text()
        parts = name.split("/")
        is_odd = any(char < " " or char in "\\\x7f" for char in name)
        if not all(parts) or any(part in (".", "..") for part in parts) or is_odd:
            raise self.error("must be the name of a file in the dataset's folder")
        return name
