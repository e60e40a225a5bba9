"""The fields that a person asks for, held against those that a dataset has."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from itertools import islice

from headrace.errors import OptionError
from headrace.storage import quoted

_KEY = "__key__"
_MOST_SHOWN = 10


def field_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names of a list of names. Raises OptionError for anything else."""
    is_list = isinstance(names, Iterable) and not isinstance(names, str | bytes)
    listed = tuple(names) if is_list else ()
    if not is_list or not all(isinstance(name, str) for name in listed):
        raise OptionError(f"fields must be a list of names of fields, or None for all: got {names!r}")
    return listed


def chosen_fields(names: Iterable[str], schema: Collection[str], url: str) -> tuple[str, ...]:
    """These fields, in the order of the schema; `__key__` comes with every sample, whether it is named or not.

    Raises OptionError for a name that is not in the schema, with the nearest that are.
    """
    wanted = frozenset(field_names(names))
    for name in sorted(wanted - {_KEY, *schema}):
        raise OptionError(f"fields must be of the dataset: {quoted(url)} has no {name!r}, {_instead(name, schema)}")
    return tuple(name for name in schema if name in wanted)


def _instead(name: str, schema: Collection[str]) -> str:
    if near := get_close_matches(name, schema):
        return f"the nearest that it has: {', '.join(map(repr, near))}"
    more = f" and {len(schema) - _MOST_SHOWN:,} more" if len(schema) > _MOST_SHOWN else ""
    return f"but {', '.join(map(repr, islice(schema, _MOST_SHOWN))) or 'no fields at all'}{more}"
