"""Values that are not there: filled in, or a reason to leave the sample out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.errors import OptionError


@dataclass(frozen=True)
class Require:
    """Leaves out samples in which one of the fields is missing."""

    fields: tuple[str, ...]

    def __post_init__(self) -> None:
        check_names("require", self.fields)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        """The sample, or None to leave it out."""
        return None if any(is_missing(sample.get(name)) for name in self.fields) else sample


@dataclass(frozen=True)
class Fill:
    """Gives missing fields a value. It comes before `Require`."""

    values: tuple[tuple[str, Any], ...]

    def __post_init__(self) -> None:
        check_names("fill", tuple(name for name, _ in self.values))

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """The sample with the values filled in."""
        return {**sample, **{name: value for name, value in self.values if is_missing(sample.get(name))}}


def is_missing(value: Any) -> bool:
    """Whether a value is none: not there, None, NaN, or text or bytes of no length."""
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return isinstance(value, str | bytes | bytearray | memoryview) and len(value) == 0


def parse_fill(text: str) -> tuple[str, Any]:
    """Name and value out of `FIELD=VALUE`; a value that is JSON is what it says, any other is text."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise OptionError(f"fill must be FIELD=VALUE, such as label=0: got {text!r}")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def check_names(option: str, names: tuple[str, ...]) -> None:
    """Raise OptionError unless these are names of fields, each once."""
    if not names or not all(isinstance(name, str) and name and name != "__key__" for name in names):
        raise OptionError(f"{option} must name fields of the samples: got {list(names)}")
    if len(set(names)) != len(names):
        raise OptionError(f"{option} must name each field once: got {list(names)}")
