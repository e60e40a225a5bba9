"""What is not the same in all of some runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from headrace.report.facts import GROUPS, Fact

Facts: TypeAlias = Mapping[tuple[str, str], Fact]
"""What is known of a run, by group and name."""


@dataclass(frozen=True)
class Change:
    """A setting, version or property of the machine that is not the same in all runs."""

    group: str
    """run, configuration, data, feed, versions or machine."""
    name: str
    values: tuple[str | None, ...]
    """What to show of each run's: never a secret; None where the run does not say."""


def changes_between(of_each: Sequence[Facts]) -> tuple[tuple[Change, ...], int]:
    """What is not the same in all runs, by group, and how many things are; `of_each` has what is known of each run."""
    found = dict.fromkeys(key for known in of_each for key in known)
    keys = sorted(found, key=lambda key: GROUPS.index(key[0]))  # which keeps the order within a group
    rows = {key: [known.get(key) for known in of_each] for key in keys}
    changes = tuple(
        Change(group, name, tuple(None if fact is None else fact.text for fact in row))
        for (group, name), row in rows.items()
        if not _all_same(row)
    )
    return changes, len(rows) - len(changes)


def _all_same(row: Sequence[Fact | None]) -> bool:
    first = row[0]
    return all(first is not None and fact is not None and first.is_same(fact) for fact in row)
