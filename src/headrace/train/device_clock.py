"""Where the time of a step went on a GPU: by events on its stream, read when they are past, so that nobody waits.

The host is ahead of the device. What it does in the meantime costs nothing, and becomes time only as far as the device
runs dry: between the end of a step's work and the beginning of the next one's. That gap lasts until the host has handed
over the next step, so it belongs to what the host did last before that, as far back as the gap goes:

    host     launch k | rest | wait for a batch | copy | launch k+1
    device   ... work of step k ...|      gap          | work of step k+1 ...

Here all of copy and a part of the wait are time of the step, and the rest is not. So the parts of all steps add up to
the device's time from the first to the last.

The device may have work in that gap, too: a copy that it makes or waits for, and what guards do. So moments are marked
where a batch is asked for, where the host has it, and where it is handed over to be copied. They cut the gap in four;
of each, what is more than the host's own time is the device's: between these three it is copy, before and after them it
is the guards', if they did something there. Where the device still worked when the host had the batch, the wait for it
cost nothing at all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from headrace.train.clock import Clock, Split

_ARRIVES = ("wait", "copy")
_ON_DEVICE = ("forward", "backward", "passes", "optimizer")


class Event(Protocol):
    """A moment of a stream; see torch.cuda.Event."""

    def record(self) -> None:
        """The moment when all that was handed over so far is done."""

    def query(self) -> bool:
        """Whether it is past."""

    def synchronize(self) -> None:
        """Wait for it."""

    def elapsed_time(self, end_event: Any) -> Any:
        """Milliseconds from this moment to another."""


def _cuda_event() -> Event:
    return torch.cuda.Event(enable_timing=True)


@dataclass(frozen=True, slots=True)
class _Did:
    """What the host did, in its order."""

    split: Split
    kind: str
    sec: float


@dataclass(frozen=True, slots=True)
class _Reached:
    """What the device reached: the end of a part of a step; without one, the end of having nothing to do."""

    event: Event
    split: Split | None = None
    kind: str | None = None
    counts: bool = True
    """Whether the time before it counts as anybody's."""
    copies: bool = False
    """Whether work of the device's own before it was a copy of the batch that was asked for."""
    hides_host: bool = False
    """Whether the device was at work for longer than what the host did before it took."""


class DeviceClock(Clock):
    """Takes the place of a clock on a device."""

    def __init__(
        self, new_event: Callable[[], Event] = _cuda_event, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.split = Split()
        self._new_event, self._now = new_event, now
        self._last = now()
        self._launch_sec = 0.0
        self._noted: deque[_Did | _Reached] = deque()
        self._did: list[_Did] = []  # since the last moment that was reached
        self._reached = self._asked = self._mark()

    def ask(self) -> None:
        """The next batch is asked for now."""
        self.lap("rest")
        self._asked = self._mark()
        self._noted.append(_Reached(self._asked))

    def begin(self) -> None:
        """The step's batch is at hand: what comes now is work of the device."""
        self.lap("rest")
        self._noted.append(_Reached(self._mark()))

    def lap(self, kind: str) -> float:
        """Count the host's time since the last lap as `kind`; of the device's work, mark the end of a part.

        What the host waits for the device in (synchronize) is neither a part nor launch.

        Between `ask` and `begin` come a wait and a copy, which may have left work to the device.
        """
        sec = self._elapsed()
        if kind == "synchronize":
            return sec
        if kind in _ON_DEVICE:
            self._noted.append(_Reached(self._mark(), self.split, kind))
            self._launch_sec += sec
            return sec
        self._noted.append(_Did(self.split, kind, sec))
        if kind in _ARRIVES:
            hides = kind == "wait" and not self._asked.query()
            self._noted.append(_Reached(self._mark(), copies=True, hides_host=hides))
        return sec

    def pause(self) -> None:
        """What comes now, until `skip`, is no part of any step."""
        self.lap("rest")
        self._noted.append(_Reached(self._mark()))

    def skip(self) -> float:
        """Count the time since the last lap as no part of any step, and return it."""
        sec = self._elapsed()
        self._noted.append(_Reached(self._mark(), counts=False))
        return sec

    def next_step(self) -> Split:
        """The split of the step that ends now, known when its events are past; a new one begins."""
        self.lap("rest")
        split, self.split = self.split, Split()
        split.launch, self._launch_sec = self._launch_sec, 0.0
        return split

    def knows(self, split: Split) -> bool:
        """Whether all of a step's split is known yet."""
        self._take(wait=False)
        return all(noted.split is not split for noted in (*self._did, *self._noted))

    def settle(self) -> None:
        """Have all splits known: wait for the device."""
        self.pause()
        self._take(wait=True)

    def _take(self, wait: bool) -> None:
        """Count what lies before the moments that are past."""
        while self._noted:
            noted = self._noted[0]
            if isinstance(noted, _Did):
                self._did.append(noted)
            elif wait or noted.event.query():
                noted.event.synchronize()
                self._count(noted)
            else:
                return
            self._noted.popleft()

    def _count(self, now: _Reached) -> None:
        sec = max(0.0, self._reached.elapsed_time(now.event) / 1e3)
        self._reached = now.event
        if now.split is not None and now.kind is not None:
            now.split.add(now.kind, sec)  # what the host does meanwhile costs nothing
            return
        if now.counts:
            _share_out(sec, self._did, now)
        self._did.clear()

    def _mark(self) -> Event:
        event = self._new_event()
        event.record()
        return event

    def _elapsed(self) -> float:
        now = self._now()
        sec, self._last = now - self._last, now
        return sec


def _share_out(gap_sec: float, did: list[_Did], end: _Reached) -> None:
    """Count a gap as what the host did last before it ended; more than all of that was work of the device's own."""
    if not end.hides_host:
        for one in reversed(did):
            taken = min(gap_sec, one.sec)
            one.split.add(one.kind, taken)
            gap_sec -= taken
    kinds = {one.kind: one.split for one in reversed(did)}
    kind = "copy" if end.copies else "guard" if "guard" in kinds else "rest"
    if did:
        kinds.get(kind, did[0].split).add(kind, gap_sec)
