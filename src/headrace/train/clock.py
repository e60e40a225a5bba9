"""Where the time of a step went.

The loop calls `lap` whenever it turns from one kind of work to another, so that every moment belongs to exactly one
kind and the kinds add up to the whole. Evaluation has its own event and is left out. On a GPU the host only hands work
over; there `device_clock.DeviceClock` takes this one's place.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class Split:
    """Seconds of one step by kind."""

    wait: float = 0.0
    """For the next batch."""
    copy: float = 0.0
    """To the device."""
    forward: float = 0.0
    backward: float = 0.0
    passes: float = 0.0
    """Forward and backward, where a pipeline's schedule mixes them."""
    optimizer: float = 0.0
    """With the correction and the clipping of the gradients."""
    communication: float = 0.0
    """That was not hidden behind compute, with the waiting for other ranks."""
    guard: float = 0.0
    """What guards do between steps: copies, replays, comparisons of replicas."""
    checkpoint: float = 0.0
    rest: float = 0.0
    launch: float | None = None
    """Seconds in which the host handed the step to a device: not a part of the others. None: it computes itself."""

    @property
    def compute(self) -> float:
        """Forward, backward and optimizer."""
        return self.forward + self.backward + self.passes + self.optimizer

    @property
    def own(self) -> float:
        """What this rank does not wait for others in."""
        return self.wait + self.copy + self.compute + self.rest

    @property
    def sec(self) -> float:
        """All of it."""
        return self.wait + self.copy + self.compute + self.communication + self.guard + self.checkpoint + self.rest

    def add(self, kind: str, sec: float) -> None:
        """Count seconds as of one kind."""
        setattr(self, kind, getattr(self, kind) + sec)

    def move(self, sec: float, source: str, target: str) -> None:
        """Count up to `sec` seconds of one kind as another, as far as there are so many."""
        sec = max(0.0, min(sec, getattr(self, source)))
        self.add(source, -sec)
        self.add(target, sec)

    def fields(self) -> dict[str, float | None]:
        """The fields of a step event: `sec` is the sum of the others, of which compute has three parts of its own."""
        compute = self.compute
        mixed = self.passes > 0
        found = {
            "sec": self.sec,
            "wait_sec": self.wait,
            "copy_sec": self.copy,
            "compute_sec": compute,
            "forward_sec": None if mixed else self.forward,
            "backward_sec": None if mixed else self.backward,
            "optimizer_sec": self.optimizer,
            "communication_sec": self.communication,
            "guard_sec": self.guard,
            "checkpoint_sec": self.checkpoint,
            "rest_sec": self.rest,
        }
        if self.launch is not None:
            found["launch_sec"] = self.launch
        return found


class Clock:
    """Laps of the monotonic clock, added up in the split of the present step."""

    def __init__(self) -> None:
        self.split = Split()
        self._last = time.perf_counter()

    def ask(self) -> None:
        """The next batch is asked for now."""
        self.lap("rest")

    def begin(self) -> None:
        """The step's batch is at hand: what comes now is work of the device."""

    def lap(self, kind: str) -> float:
        """Count the time since the last lap as `kind`, and return it."""
        now = time.perf_counter()
        sec = now - self._last
        self._last = now
        setattr(self.split, kind, getattr(self.split, kind) + sec)
        return sec

    def pause(self) -> None:
        """What comes now, until `skip`, is no part of any step."""
        self.lap("rest")

    def skip(self) -> float:
        """Count the time since the last lap as no part of any step, and return it."""
        now = time.perf_counter()
        sec = now - self._last
        self._last = now
        return sec

    def next_step(self) -> Split:
        """The split of the step that ends now; a new one begins."""
        self.lap("rest")
        split, self.split = self.split, Split()
        return split

    def knows(self, split: Split) -> bool:
        """Whether all of a step's split is known yet."""
        return True

    def settle(self) -> None:
        """Have all splits known, whoever has to be waited for."""
