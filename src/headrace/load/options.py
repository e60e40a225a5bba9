"""Checks of options, where they are given."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from typing import Any

from headrace.errors import OptionError

_SHOWN = (
    "batch_size",
    "global_batch_size",
    "processes",
    "threads",
    "prefetch",
    "memory",
    "cache_decoded",
    "drop_last",
    "on_error",
)


def shown_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's record has of a loader's options, as JSON values."""
    found = {name: given[name] for name in _SHOWN}
    shown = {name: str(value) if isinstance(value, os.PathLike) else value for name, value in found.items()}
    collate = given["collate"]
    return shown | {
        "collate": None if collate is None else str(getattr(collate, "__qualname__", type(collate).__name__))
    }


def check_handlers(collate: Any, on_error: Any, max_skipped: int | None) -> None:
    """Raise OptionError unless these are what is done with samples, and with damaged ones."""
    if collate is not None and not callable(collate):
        raise OptionError(f"collate is a function(list of samples) -> dict: got {collate!r}")
    if on_error not in ("raise", "skip"):
        raise OptionError(f'on_error is "raise" or "skip": got {on_error!r}')
    if on_error == "raise" and max_skipped is not None:
        raise OptionError(f'max_skipped={max_skipped} needs on_error="skip"')


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as an int; OptionError if it is no whole number of at least `least` and at most `most`."""
    bound = f"at least {least}" + (f" and at most {most:,}" if most is not None else "")
    try:
        number = operator.index(value)
    except TypeError:
        raise OptionError(f"{name} must be a whole number, {bound}: got {value!r}") from None
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise OptionError(f"{name} must be {bound}: got {value!r}")
    return number


def optional_number(name: str, value: Any, least: int, most: int | None = None) -> int | None:
    """The same, None being allowed."""
    return None if value is None else whole_number(name, value, least, most)


def optional_seconds(name: str, value: Any, least: float) -> float | None:
    """The value as a float, None being allowed; OptionError if it is no finite number of at least `least`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise OptionError(f"{name} must be a number of seconds, at least {least:g}, or None: got {value!r}")
    return float(value)


def check_flag(name: str, value: Any) -> None:
    """OptionError if the value is not True or False."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False: got {value!r}")
