"""What happened in a run beside its steps: starts, checkpoints, evaluations, alarms, what guards found, errors.

One list, in the order of time: the page's history is this list, and its charts mark those that belong to a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from headrace.report import formatting as fmt
from headrace.report.runlog import Event, Run

Kind: TypeAlias = Literal[
    "start", "restart", "checkpoint", "evaluation", "guard", "alarm", "feed", "stop", "error", "end"
]


@dataclass(frozen=True)
class Incident:
    """One thing that happened. `time` is in Unix seconds, `step` the completed steps; None where it is not known."""

    kind: Kind
    time: float | None
    step: float | None
    title: str
    detail: str
    lost_steps: int = 0
    """Of a restart: the steps after `step` that had to be done again."""


def incidents(run: Run, alarms: Iterable[Event] = ()) -> list[Incident]:
    """All of a run, in the order of time, with its alarms (`beside.py`)."""
    return sorted(_all(run, alarms), key=lambda one: one.time or 0.0)


def _all(run: Run, alarms: Iterable[Event]) -> Iterator[Incident]:
    yield from _starts(run)
    yield from map(_checkpoint, run.checkpoints)
    yield from map(_evaluation, run.evaluations)
    for event in run.loader_restarts:
        yield _of("feed", event, "feed replaced", f"{event.get('process')} process: {event.get('reason')}")
    for event in run.guards:
        yield _of("guard", event, f"guard: {event.get('guard')}", f"{event.get('detail')}: {event.get('action')}")
    for event in alarms:
        yield _of("alarm", event, f"alarm: {event.get('rule')}", str(event.get("message") or ""))
    yield from _endings(run)


def _starts(run: Run) -> Iterator[Incident]:
    for number, attempt in enumerate(run.attempts):
        origin = f"from {attempt.start['resumed_from']}" if attempt.start.get("resumed_from") else "fresh"
        lost = f", {fmt.plural(attempt.lost_steps, 'step')} done again" if attempt.lost_steps else ""
        kind: Kind = "restart" if number else "start"
        time = fmt.as_float(attempt.start.get("time"))
        yield Incident(kind, time, attempt.step, kind, origin + lost, attempt.lost_steps)


def _checkpoint(event: Event) -> Incident:
    size, took = fmt.num_bytes(fmt.as_float(event.get("bytes"))), fmt.seconds(fmt.as_float(event.get("sec")))
    return _of("checkpoint", event, "checkpoint", f"{event.get('path') or ''}, {size} in {took}")


def _evaluation(event: Event) -> Incident:
    values = {"loss": event.get("loss"), **(event.get("metrics") or {})}
    said = ", ".join(f"{name} {fmt.number(fmt.as_float(value))}" for name, value in values.items())
    return _of("evaluation", event, "evaluation", said)


def _endings(run: Run) -> Iterable[Incident]:
    for event in run.stops:
        yield _of("stop", event, "stop", str(event.get("reason") or ""))
    for event in run.errors:
        detail = f"rank {event.get('rank')}: {event.get('type')}: {event.get('message')}"
        yield _of("error", event, "error", detail)
    if run.end is not None:
        yield _of("end", run.end, "end", fmt.plural(fmt.as_float(run.end.get("epochs")), "epoch"))


def _of(kind: Kind, event: dict[str, Any], title: str, detail: str) -> Incident:
    return Incident(kind, fmt.as_float(event.get("time")), fmt.as_float(event.get("step")), title, detail)
