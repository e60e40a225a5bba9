"""Rules about how fast a run goes: accelerator utilization, throughput, and whether it goes on at all."""

from __future__ import annotations

import statistics
from collections import deque

from headrace.alarms.rule import Event, Reading, number

_BUCKETS = 12
"""A span is judged anew each time a twelfth of it has passed."""
_USUAL_SPANS = 30
_WELL = 1.1
"""Times the limit, as far as that can be reached."""
_IDLE = ("wait_sec", "copy_sec", "communication_sec", "checkpoint_sec", "guard_sec", "rest_sec")
"""A step's parts but for those in which it computes, whatever these are called."""
_NUMBERS = (int, float)
_LONGEST_TICK_SEC = 5.0
_PATIENCE = 3


class _Buckets:
    """Sums of steps' values over pieces of a span of time, by the time at which steps ended.

    The first step, which starts everything up, is left out.
    """

    def __init__(self, span_sec: float) -> None:
        self._each_sec = span_sec / _BUCKETS
        self._ends: float | None = None
        self._sums = (0.0, 0.0)

    def add(self, time: float, values: tuple[float, float]) -> tuple[float, float] | None:
        """Count one step; the sums of the bucket that it is the first behind, if it is."""
        if self._ends is None:
            self._ends = time + self._each_sec
            return None
        done = None
        if time >= self._ends:
            done, self._sums = self._sums, (0.0, 0.0)
            self._ends = time + self._each_sec
        self._sums = (self._sums[0] + values[0], self._sums[1] + values[1])
        return done


class LowUtilization:
    """Accelerator utilization over some minutes: seconds in which steps compute over seconds of steps."""

    name = "au"
    kinds = ("step",)

    def __init__(self, below: float, minutes: float) -> None:
        self._below, self._minutes = below, minutes
        self._buckets = _Buckets(60 * minutes)
        self._recent: deque[tuple[float, float]] = deque(maxlen=_BUCKETS)

    def take(self, event: Event) -> Reading | None:
        """A reading a twelfth of the span, once there was a whole one."""
        sec = number(event, "sec")
        idle = [part for part in map(event.get, _IDLE) if isinstance(part, _NUMBERS)]
        if sec is None or not idle:
            return None
        done = self._buckets.add(event["time"], (sec - sum(idle), sec))
        if done is None:
            return None
        self._recent.append(done)
        whole = sum(sec for _, sec in self._recent)
        if len(self._recent) < _BUCKETS or whole <= 0:
            return None
        au = sum(busy for busy, _ in self._recent) / whole
        wrong = au < self._below
        return Reading(au, self._below, wrong, well=not wrong and au >= min(_WELL * self._below, 1.0))

    def message(self, reading: Reading) -> str:
        """In percent."""
        return (
            f"the accelerator computes {_percent(reading.value)} of the time, over {_span(60 * self._minutes)}: "
            f"below {_percent(reading.limit)}"
        )


class LowThroughput:
    """Samples a second over some minutes, beside the median of what they were in the 30 times as long before."""

    name = "throughput"
    kinds = ("step",)

    def __init__(self, below: float, minutes: float) -> None:
        self._below, self._minutes = below, minutes
        self._buckets = _Buckets(60 * minutes)
        self._recent: deque[tuple[float, float]] = deque(maxlen=_BUCKETS)
        self._usual: deque[float] = deque(maxlen=_USUAL_SPANS * _BUCKETS)

    def take(self, event: Event) -> Reading | None:
        """A reading a twelfth of the span, once there were two whole ones."""
        sec = number(event, "sec")
        samples = number(event, "samples")
        if sec is None or samples is None:
            return None
        done = self._buckets.add(event["time"], (samples, sec))
        if done is None or done[1] <= 0:
            return None
        if len(self._recent) == _BUCKETS:
            self._usual.append(self._recent[0][0] / self._recent[0][1])
        self._recent.append(done)
        if len(self._usual) < _BUCKETS:
            return None
        rate = sum(samples for samples, _ in self._recent) / sum(sec for _, sec in self._recent)
        limit = self._below * statistics.median(self._usual)
        wrong = rate < limit
        if wrong:  # what is wrong does not become usual
            self._usual.pop()
        return Reading(rate, limit, wrong, well=not wrong and rate >= min(_WELL, 1 / self._below) * limit)

    def message(self, reading: Reading) -> str:
        """In samples/s."""
        usual = reading.limit / self._below
        return (
            f"{reading.value:.4g} samples/s over {_span(60 * self._minutes)}, beside {usual:.4g} before: "
            f"below {_percent(self._below)} of it"
        )


class NoStep:
    """Seconds since a step, an evaluation or a checkpoint ended, while the run is under way."""

    name = "no_step"
    kinds = ("tick", "step", "evaluate", "checkpoint", "end", "stop", "error")

    def __init__(self, limit_sec: float) -> None:
        self._limit_sec = limit_sec
        self._over = False
        self._stepped = False
        self._silent_sec = self._longest_sec = 0.0
        self._looked: float | None = None

    def take(self, event: Event) -> Reading | None:
        """A reading at each tick, and at what ends the silence."""
        kind = event["event"]
        if kind == "tick":
            return self._tick(event["time"])
        if kind in ("end", "stop", "error"):
            self._over = True
        if self._stepped:
            self._longest_sec = max(self._longest_sec, self._silent_sec)
        self._stepped = self._stepped or kind == "step"
        self._silent_sec = 0.0
        return Reading(0.0, self._limit_sec, wrong=False, well=True)

    def _tick(self, time: float) -> Reading | None:
        looked, self._looked = self._looked, time
        if self._over or looked is None:
            return None
        # A process that was itself suspended, or a clock that was set, is not silence of the run.
        self._silent_sec += min(max(0.0, time - looked), _LONGEST_TICK_SEC)
        limit = self._limit_sec if self._stepped else _PATIENCE * self._limit_sec
        limit = max(limit, _PATIENCE * self._longest_sec)
        return Reading(self._silent_sec, limit, wrong=self._silent_sec > limit, well=False)

    def message(self, reading: Reading) -> str:
        """In seconds or minutes."""
        return f"no step, evaluation or checkpoint has ended for {_span(reading.value)}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _span(sec: float) -> str:
    return f"{sec / 60:.3g} minutes" if sec >= 120 else f"{sec:.3g} s"
