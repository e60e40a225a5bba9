"""The sentence above a comparison: which run makes more samples a second, why, and what was changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.report import formatting as fmt
from headrace.report.changes import Change

_ABOUT_EQUAL = 0.03
_MOST_CHANGES = 3
_LONGEST = 28
_MODEL = ("compute", "forward", "backward", "optimizer")
_WAYS = {
    "wait": ("waits", "for data"),
    "copy": ("spends", "time on copying batches to the device"),
    "communication": ("spends", "time on communication"),
    "guard": ("spends", "time on guards"),
    "checkpoint": ("spends", "time on writing checkpoints"),
    "rest": ("spends", "time between the parts that are measured"),
}
_NOUNS = {"wait": "waiting for data", "copy": "copying", "checkpoint": "saving", "rest": "time between measured parts"}


def headline(names: Sequence[str], table: Mapping[str, tuple[Any, ...]], changes: Sequence[Change]) -> str:
    """Of two runs what the second came to beside the first; of more, how they stand beside the first."""
    rates = table["samples_per_sec"]
    said = _of_two(names, table) if len(names) == 2 else _of_many(names, rates)
    return f"{said}; {_changed(changes)}."


def _of_two(names: Sequence[str], table: Mapping[str, tuple[Any, ...]]) -> str:
    first, second = names
    before, after = table["samples_per_sec"]
    if not before or not after:
        unknown = first if not before else second
        return f"{second} and {first} cannot be compared by rate: how many samples/s {unknown} made is not known"
    ratio = after / before
    if abs(ratio - 1) < _ABOUT_EQUAL:
        return f"{second} makes about as many samples/s as {first} ({ratio:.2f} times)"
    return f"{second} makes {ratio:.2f} times as many samples/s as {first}{_why(table, ratio > 1)}"


def _why(table: Mapping[str, tuple[Any, ...]], faster: bool) -> str:
    """The part whose time a sample changed the most in the direction of the rate, if the split is known."""
    gains: dict[str, float] = {}
    for name, shares in table.items():
        if name.endswith("_share") and None not in shares:
            before, after = (share / rate for share, rate in zip(shares, table["samples_per_sec"], strict=True))
            gains[name.removesuffix("_share")] = before - after if faster else after - before
    part = max(gains, key=lambda part: gains[part], default=None)
    if part is None or gains[part] <= 0:
        return ""
    before, after = table[f"{part}_share"]
    shares_agree = (before > after) == faster
    if part in _MODEL or not shares_agree:
        sec = [share / rate for share, rate in zip((before, after), table["samples_per_sec"], strict=True)]
        return f": its {_NOUNS.get(part, part)} takes {fmt.seconds(sec[1])} a sample, not {fmt.seconds(sec[0])}"
    verb, what = _WAYS.get(part, ("spends", f"time on {part}"))
    return f": it {verb} {'less' if faster else 'more'} {what} ({fmt.percent(before)} to {fmt.percent(after)})"


def _of_many(names: Sequence[str], rates: Sequence[float | None]) -> str:
    base = rates[0]
    known = [(rate, name) for rate, name in zip(rates, names, strict=True) if rate]
    if len(known) < 2:
        return "The runs cannot be compared by rate: how many samples/s they made is not known"
    if not base:
        best, name = max(known)
        return f"{name} makes the most samples/s, {fmt.number(best)}; the rate of {names[0]} is not known"
    others = sorted(((rate / base, name) for rate, name in known if name != names[0]), reverse=True)
    (ratio, best_name), *rest = others
    text = f"{best_name} makes {ratio:.2f} times as many samples/s as {names[0]}"
    return text + "".join(f", {name} {ratio:.2f} times" for ratio, name in rest)


def _changed(changes: Sequence[Change]) -> str:
    """What was changed, what a person sets before what the machine is."""
    if not changes:
        return "nothing that their records name was changed"
    said = [change for change in changes if None not in change.values]  # what one says nothing of may not differ
    shown = [_change(change) for change in said[:_MOST_CHANGES]]
    others = len(changes) - len(shown)
    if not shown:
        return f"changed: {fmt.plural(others, 'setting')} that not all of their records name"
    return f"changed: {', '.join(shown)}" + (f", and {others} more" if others else "")


def _change(change: Change) -> str:
    name = change.name.removeprefix("settings.")
    values = [str(value) for value in change.values]
    if any(len(value) > _LONGEST for value in values) or len(set(values)) == 1:  # hidden ones read the same
        return name
    return f"{name} {(' to ' if len(values) == 2 else ', ').join(values)}"
