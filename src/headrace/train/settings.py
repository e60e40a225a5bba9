"""A recipe's settings: its keyword parameters, read from text as the types they are annotated with.

Read are int, float, bool, str, Path, `X | None` (the word none), Literal, and tuples and lists of these, separated by
commas. A parameter without annotation has its default's type. Needs no torch.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from headrace.errors import OptionError, RecipeError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_KINDS = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Setting:
    """One parameter of a recipe."""

    name: str
    type: Any
    default: Any
    """`inspect.Parameter.empty` where there is none."""

    def __str__(self) -> str:
        """As in `lr: float = 0.001`."""
        shown = f"{self.name}: {type_name(self.type)}"
        return shown if self.default is inspect.Parameter.empty else f"{shown} = {self.default!r}"


def recipe_settings(function: Callable[..., Any]) -> dict[str, Setting]:
    """The settings of a recipe, by name. Raises RecipeError for a parameter whose type cannot be known."""
    try:
        hints = typing.get_type_hints(function)
    except Exception as err:
        raise RecipeError(f"the types of {function.__name__}'s parameters cannot be read: {err}") from err
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in _KINDS:
            raise RecipeError(f"a recipe's parameters must have names: {function.__name__} has *{name}")
        if name not in hints and parameter.default in (inspect.Parameter.empty, None):
            raise RecipeError(
                f"a recipe's parameter needs a type or a default: {name} has neither; write {name}: float"
            )
        found[name] = Setting(name, hints.get(name, type(parameter.default)), parameter.default)
    return found


def parse_settings(function: Callable[..., Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Arguments for a recipe from `name=value` texts; the last of a name counts.

    Raises OptionError for an unknown name, listing the settings, for a text that is not of the type, and for a
    parameter without default that is not set.
    """
    settings = recipe_settings(function)
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise OptionError(f"a setting is given as name=value: got {assignment!r}")
        if name not in settings:
            known = "; ".join(str(setting) for setting in settings.values())
            raise OptionError(f"the recipe has no setting {name!r}: it has {known or 'none'}")
        values[name] = _parse_setting(settings[name], text)
    missing = [s.name for s in settings.values() if s.default is inspect.Parameter.empty and s.name not in values]
    if missing:
        raise OptionError(f"the recipe needs {', '.join(missing)}: give --set {missing[0]}=VALUE")
    return values


def parse_value(kind: Any, text: str) -> Any:
    """The text as a value of a type. Raises ValueError when it is none."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _parse_union(get_args(kind), text)
    if origin is Literal:
        return _parse_literal(get_args(kind), text)
    if origin in (tuple, list):
        return _parse_sequence(origin, get_args(kind), text)
    if kind is bool:
        return _parse_bool(text)
    if kind in (int, float, str, Path):
        return kind(text)
    raise ValueError


def type_name(kind: Any) -> str:
    """How a user would write the type."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def _parse_setting(setting: Setting, text: str) -> Any:
    try:
        return parse_value(setting.type, text)
    except ValueError as err:
        raise OptionError(f"setting {setting.name} must be of type {type_name(setting.type)}: got {text!r}") from err


def _parse_union(kinds: tuple[Any, ...], text: str) -> Any:
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        if kind is not type(None):
            try:
                return parse_value(kind, text)
            except ValueError:
                continue
    raise ValueError


def _parse_literal(choices: tuple[Any, ...], text: str) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise ValueError


def _parse_bool(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise ValueError


def _parse_sequence(origin: Any, kinds: tuple[Any, ...], text: str) -> Any:
    texts = text.split(",") if text else []
    if origin is tuple and not (len(kinds) == 2 and kinds[1] is Ellipsis):
        if len(texts) != len(kinds):
            raise ValueError
        return tuple(parse_value(kind, part) for kind, part in zip(kinds, texts, strict=True))
    return origin(parse_value(kinds[0], part) for part in texts)
