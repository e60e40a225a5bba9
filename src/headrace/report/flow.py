"""The feed as a flow: its stages from the storage to the trainer, what each makes, and what it could make.

A stage's ceiling is what its threads make in a second of work, all of them together; it is what the stage would bring
if it never waited. The trainer's is what it would take if it never waited for input. The flow has the rate of the
lowest ceiling at most; less where there are too few cores for all of it, or too few batches ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from headrace.report import formatting as fmt
from headrace.report.stages import Stage, bottleneck

_SHARED_THREADS = ("read", "verify")
"""Stages that are the work of the same threads: their seconds add up."""


def ceiling(stage: Stage, stages: Sequence[Stage]) -> float | None:
    """Items a second that its threads could make; None where that is not known."""
    same = [other for other in stages if other.name in _SHARED_THREADS] if stage.name in _SHARED_THREADS else [stage]
    busy_sec = sum(other.busy_sec for other in same)
    return stage.items * stage.threads / busy_sec if busy_sec > 0 and stage.items and stage.threads else None


def flow(stages: Sequence[Stage], wait_share: float | None) -> str:
    """The stages as a list from left to right (on a phone from top to bottom), and the trainer at its end.

    `wait_share` is the trainer's share of time spent waiting for input, 0 to 1.
    """
    slowest = bottleneck(stages)
    items = [_stage(stage, stages, stage is slowest) for stage in stages]
    return f'<ol class="flow">{"".join(items)}{_trainer(stages, wait_share)}</ol>'


def _stage(stage: Stage, stages: Sequence[Stage], is_slowest: bool) -> str:
    most = ceiling(stage, stages)
    notes = [
        f"{fmt.num_bytes(stage.bytes_per_sec)}/s" if stage.bytes_per_sec else "",
        f"up to {fmt.number(most)}/s" if most is not None else "",
        _work(stage),
    ]
    return _item(stage.name, stage.items_per_sec, notes, stage.busy_share, "slowest" if is_slowest else "")


def _work(stage: Stage) -> str:
    if stage.busy_share is None:
        return ""
    return f"{fmt.plural(stage.threads, 'thread')}, busy {fmt.percent(stage.busy_share)}"


def _trainer(stages: Sequence[Stage], wait_share: float | None) -> str:
    rate = stages[-1].items_per_sec
    if rate is None or wait_share is None or not 0 <= wait_share < 1:
        return ""
    busy = 1 - wait_share
    notes = [f"takes up to {fmt.number(rate / busy)}/s", f"waits {fmt.percent(wait_share)}"]
    return _item("trainer", rate, notes, busy, "trainer")


def _item(name: str, rate: float | None, notes: Sequence[str], busy: float | None, css: str) -> str:
    bar = "" if busy is None else f'<i class="meter"><span style="width:{100 * busy:.0f}%"></span></i>'
    flag = "<em>holds the others up</em>" if css == "slowest" else ""
    lines = "".join(f"<small>{note}</small>" for note in notes if note)
    return (
        f'<li class="{css}"><h3>{escape(name)}</h3>{flag}<strong>{fmt.number(rate, 4)}<span>/s</span></strong>'
        f"{bar}{lines}</li>"
    )
