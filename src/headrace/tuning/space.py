"""What is searched: a range or a choice for a setting of a recipe, in the types that the recipe's signature gives.

    lr=1e-4..1e-1:log     a number from a range, evenly over its logarithm
    dropout=0..0.5        a number from a range; whole ones where the setting is an int
    width=32,64,128       one of these

A value travels as the text that `--set` would have, so a trial is a run that anybody can start again.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from headrace.errors import OptionError
from headrace.train.settings import Setting, parse_value, type_name

_HOW = "give NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C"


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool
    whole: bool
    """Whole numbers only."""


@dataclass(frozen=True, slots=True)
class Choices:
    """One of some texts."""

    texts: tuple[str, ...]


Space = Mapping[str, Range | Choices]


def parse_space(settings: Mapping[str, Setting], search: Mapping[str, str]) -> Space:
    """What to search, by setting. Raises OptionError for what the recipe does not have or its types do not take."""
    known = "; ".join(str(setting) for setting in settings.values()) or "none"
    if not search:
        raise OptionError(f"a search needs settings to vary: {_HOW}; the recipe has {known}")
    for name in search:
        if name not in settings:
            raise OptionError(f"the recipe has no setting {name!r} to search: it has {known}")
    return {name: _parse(settings[name], text.strip()) for name, text in search.items()}


def as_text(value: Any) -> str:
    """A setting's value as `--set` takes it. Of a number six digits, which say all that a search can know."""
    if isinstance(value, list | tuple):
        return ",".join(as_text(part) for part in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _parse(setting: Setting, text: str) -> Range | Choices:
    kinds = _kinds(setting.type)
    if ".." in text and kinds & {int, float}:
        return _parse_range(setting, text, whole=float not in kinds)
    if any(get_origin(kind) in (tuple, list) for kind in kinds):
        raise OptionError(
            f"setting {setting.name} of type {type_name(setting.type)} cannot be searched, since commas part its "
            "values: let the recipe take one that names them"
        )
    texts = tuple(text.split(","))
    if len(set(texts)) < 2 or len(set(texts)) < len(texts):
        raise OptionError(f"a search of {setting.name} needs two different values at least: got {text!r}; {_HOW}")
    for choice in texts:
        _check(setting, choice)
    return Choices(texts)


def _parse_range(setting: Setting, text: str, *, whole: bool) -> Range:
    ends, _, scale = text.partition(":")
    low, high = (_check(setting, end) for end in ends.split("..", 1))
    if scale not in ("", "log"):
        raise OptionError(f"a range of {setting.name} may end with :log only: got {text!r}")
    if not all(isinstance(end, int | float) for end in (low, high)) or not low < high:
        raise OptionError(f"a range of {setting.name} goes from a low to a higher number: got {text!r}")
    if scale and low <= 0:
        raise OptionError(f"a range of {setting.name} over a logarithm begins above 0: got {text!r}")
    return Range(low, high, bool(scale), whole)


def _check(setting: Setting, text: str) -> Any:
    try:
        return parse_value(setting.type, text)
    except ValueError as err:
        kind = type_name(setting.type)
        raise OptionError(f"a search of {setting.name} needs values of type {kind}: got {text!r}; {_HOW}") from err


def _kinds(kind: Any) -> set[Any]:
    """The type, or those of a union."""
    return set(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else {kind}
