"""All rules together: events in, alarms out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from headrace.alarms.loss import LossSpike
from headrace.alarms.machine import DiskFull, MemoryCreep
from headrace.alarms.options import Alarms
from headrace.alarms.pace import LowThroughput, LowUtilization, NoStep
from headrace.alarms.ranks import Straggler
from headrace.alarms.rule import Bell, Event, Reading, Rule


@dataclass(frozen=True, slots=True)
class Alarm:
    """One rule that rang."""

    time: float
    """Unix seconds, of the event that it rang at."""
    step: int
    """The latest step of the run, counted from 1; 0 before the first."""
    rule: str
    """ "au", "throughput", "no_step", "loss_spike", "straggler", "disk" or "memory"."""
    message: str
    """A sentence, with units."""
    value: float
    """What was found: a share, samples/s, seconds, deviations, a ratio, bytes, or hours, in this order of the rules."""
    limit: float
    """What it was compared with, in the same unit."""

    def fields(self) -> dict[str, Any]:
        """The fields of its event in the record."""
        return {name: value for name, value in asdict(self).items() if name != "time"}


class Judge:
    """Takes the events of a run one by one, of any number of attempts. For one thread."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._step = 0
        self._begin()

    def _begin(self) -> None:
        self._by_kind: dict[str, list[tuple[Rule, Bell]]] = {}
        for rule in rules_of(self._alarms):
            bell = Bell()
            for kind in rule.kinds:
                self._by_kind.setdefault(kind, []).append((rule, bell))

    def take(self, event: Event) -> list[Alarm]:
        """What rings at the next event."""
        kind = event["event"]
        if kind == "start":
            self._begin()  # an attempt is judged by itself
        elif kind == "step" and type(event.get("step")) is int:
            self._step = event["step"]
        found = []
        for rule, bell in self._by_kind.get(kind, ()):
            reading = rule.take(event)
            if reading is not None and bell.hear(reading):
                found.append(self._alarm(rule, reading, event["time"]))
        return found

    def _alarm(self, rule: Rule, reading: Reading, time: float) -> Alarm:
        return Alarm(time, self._step, rule.name, rule.message(reading), reading.value, reading.limit)


def rules_of(alarms: Alarms) -> list[Rule]:
    """The rules that are on, as at the beginning of an attempt."""
    rules: list[Rule] = []
    if alarms.au_below is not None:
        rules.append(LowUtilization(alarms.au_below, alarms.au_minutes))
    if alarms.throughput_below is not None:
        rules.append(LowThroughput(alarms.throughput_below, alarms.throughput_minutes))
    if alarms.no_step_sec is not None:
        rules.append(NoStep(alarms.no_step_sec))
    if alarms.spike_score is not None:
        rules.append(LossSpike(alarms.spike_score))
    if alarms.straggler_ratio is not None:
        rules.append(Straggler(alarms.straggler_ratio))
    if alarms.disk_free_bytes is not None:
        rules.append(DiskFull(alarms.disk_free_bytes))
    if alarms.memory_hours is not None:
        rules.append(MemoryCreep(alarms.memory_hours))
    return rules


def judged(events: Iterable[Event], alarms: Alarms | None = None) -> Iterator[Alarm]:
    """What rings at a run's events, as `headrace.telemetry.read_events` gives them; None: the default alarms.

    The same decisions as while it ran, by the rules that need the events alone: all but those about silence, disk and
    memory, which look at the clock and the machine.
    """
    judge = Judge(alarms or Alarms())
    for event in events:
        if isinstance(event.get("time"), int | float):
            yield from judge.take(event)
