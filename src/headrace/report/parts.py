"""The parts of a step's time as the page shows them: their order, their names and the classes that colour them.

Which parts there are is the run's to say (`runlog.PARTS`). One that is not known here keeps its own name, and takes one
of the spare colours.
"""

from __future__ import annotations

from collections.abc import Mapping

from headrace.report.runlog import PARTS, Run
from headrace.report.series import Array

_NAMES = {
    "copy": "copy to device",
    "wait": "wait for input",
}
_COLOURED = (
    "compute",
    "forward",
    "backward",
    "optimizer",
    "communication",
    "copy",
    "wait",
    "checkpoint",
    "evaluation",
    "guard",
    "rest",
)
_SPARE = ("spare-a", "spare-b", "spare-c")


def part_name(part: str) -> str:
    """What a person calls it."""
    return _NAMES.get(part, part)


def part_css(part: str) -> str:
    """The class that gives its colour."""
    if part in _COLOURED:
        return part
    others = [other for other in PARTS if other not in _COLOURED]
    return _SPARE[others.index(part) % len(_SPARE)] if part in others else _SPARE[0]


def part_seconds(run: Run) -> Mapping[str, Array]:
    """Seconds a step of every part that the run's steps speak of, as finely; the columns are the run's own."""
    columns = {part: run.steps.get(f"{part}_sec") for part in run.parts}
    return {part: column for part, column in columns.items() if column is not None}
