"""Names of fields that a pack was asked about: a misspelt one is said, before any work where that can be known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from headrace.errors import OptionError
from headrace.packing.pipeline import Selection, name_of
from headrace.packing.source import Source

ANY_EXTENSION = ".*"
"""Ends the name of a field whose extension is that of the file it holds."""

_MOST_SHOWN = 8


def check_fields(source: Source, selections: Iterable[Selection]) -> None:
    """Raise OptionError for a field that selections speak of and no sample of the source can have."""
    if source.fields is None:
        return
    for selection in selections:
        for name in sorted(selection.fields):
            if not any(_is(name, known) for known in source.fields):
                raise OptionError(
                    f"{source.title} has no field {name!r}, which {_asker(selection)} names{_hint(name, source.fields)}"
                )


def unseen_fields(selections: Iterable[Selection]) -> str:
    """A clause about fields that selections speak of and no sample had; empty if each was there."""
    found = [
        f"no sample had a field {name!r}, which {_asker(selection)} names{_hint(name, selection.seen)}"
        for selection in selections
        if selection.seen
        for name in sorted(selection.unseen)
    ]
    return "; ".join(found)


def _asker(selection: Selection) -> str:
    return name_of(selection).replace(" and ", " or ")


def _is(name: str, known: str) -> bool:
    return name.startswith(known[:-1]) if known.endswith(ANY_EXTENSION) else name == known


def _hint(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = _nearest(name, names)
    if near:
        return f": did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(names) - _MOST_SHOWN:,} more" if len(names) > _MOST_SHOWN else ""
    return f": the fields are {', '.join(map(repr, names[:_MOST_SHOWN])) or 'none'}{more}"


def _nearest(name: str, names: Sequence[str]) -> list[str]:
    wanted, by_lower = name.lower(), {known.lower(): known for known in names}
    near = [known for known in by_lower if wanted in (known.partition(".")[0], known.partition(".")[2])]
    near += get_close_matches(wanted, list(by_lower))
    return [by_lower[known] for known in dict.fromkeys(near)][:2]
