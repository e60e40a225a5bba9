"""The seconds of the step under way, by what they went into.

A step is what lies between the ends of two. Of it, what is `timed` has its own name, a loader's `next` is waiting, the
time inside the step's block that has no other name is computing, and what is left is the rest: so the parts add up to
the wall time, however they are nested. `forward`, `backward` and `optimizer` divide the computing once more; a step
that names all three computes in these, and what else its block does is the rest.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from headrace.errors import OptionError

NAMED = ("copy", "communication", "checkpoint", "rest")
PHASES = ("forward", "backward", "optimizer")


class StepParts:
    """For one thread."""

    def __init__(self) -> None:
        self._sec = dict.fromkeys(("wait", *NAMED), 0.0)
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._began: float | None = None
        self._named_began = 0.0
        self._block, self._block_named = 0.0, 0.0
        self._at, self._counted_at = 0.0, 0.0
        self._aside: tuple[float, dict[str, float], dict[str, float]] | None = None

    def waited(self, sec: float) -> None:
        """A loader's `next` took so long, and is over now. The first one begins the step."""
        if self._began is None:
            self._began, self._named_began = time.perf_counter() - sec, self._named()
        self._sec["wait"] += sec

    def copied(self, sec: float) -> None:
        """Moving a batch took so long, of the time that has no name yet."""
        self._sec["copy"] += sec

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count what the block takes as `kind`, but for what has another name in it."""
        if kind not in NAMED and kind not in PHASES:
            raise OptionError(f"kind must be one of {', '.join(NAMED + PHASES)}: got {kind!r}")
        counts = self._phases if kind in PHASES else self._sec
        began, counted = time.perf_counter(), self._counted()
        try:
            yield
        finally:
            counts[kind] += time.perf_counter() - began - (self._counted() - counted)

    def lap(self, phase: str | None = None) -> None:
        """Count the time since the last lap as a phase of the computing, but for what has another name in it."""
        now = time.perf_counter()
        if phase is not None:
            self._phases[phase] += now - self._at - (self._counted() - self._counted_at)
        self._at, self._counted_at = now, self._counted()

    def begin_step(self) -> None:
        """The computing begins; with what came before it since the last step, it is a step."""
        self._block, self._block_named = time.perf_counter(), self._named()
        if self._began is None:
            self._began, self._named_began = self._block, self._block_named

    def end_step(self) -> dict[str, float]:
        """The computing and its step are over, and the next step begins: the seconds, as a step's event has them."""
        assert self._began is not None
        now, sec, phases = time.perf_counter(), self._sec, self._phases
        compute_sec, whole = now - self._block - (self._named() - self._block_named), now - self._began
        before = self._named_began  # a checkpoint after a pause: the step's to show, but no part of its wall time
        self.forget()
        self._began = now
        compute_sec = sum(phases.values()) if all(phases.values()) else compute_sec
        sec["rest"] += max(0.0, whole - compute_sec - (sum(sec.values()) - before))
        fields = {"sec": sum(sec.values()) + compute_sec, "compute_sec": compute_sec}
        fields |= {f"{kind}_sec": value for kind, value in sec.items()}
        return fields | {f"{name}_sec": value for name, value in phases.items() if value}

    def set_aside(self) -> None:
        """What comes is no part of any step, until `go_on`: an evaluation that another library runs."""
        self._aside = time.perf_counter(), dict(self._sec), dict(self._phases)

    def go_on(self) -> float:
        """The step goes on where it was; returns how many seconds are left out."""
        assert self._aside is not None
        (began, named, phases), self._aside = self._aside, None
        self._sec.update(named)
        self._phases.update(phases)
        sec = time.perf_counter() - began
        self._block += sec
        self._at += sec
        if self._began is not None:
            self._began += sec
        return sec

    def pause(self) -> None:
        """What comes until the next batch or step is no part of any."""
        self._began = None

    def forget(self) -> None:
        """What was counted since the last step is no part of the next one."""
        self._sec = dict.fromkeys(self._sec, 0.0)
        self._phases = dict.fromkeys(PHASES, 0.0)
        self._began, self._named_began = None, 0.0

    def _named(self) -> float:
        return sum(self._sec.values())

    def _counted(self) -> float:
        """With the phases of the computing: what lies within another block is taken from that one."""
        return self._named() + sum(self._phases.values())
