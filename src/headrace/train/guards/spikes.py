"""Spikes of the loss and of the norm of the gradients: values far above what the latest steps make usual.

How far is a robust z-score: (value - median) / (1.4826 * MAD), where MAD is the median distance from the median and the
factor makes it the standard deviation of a normal distribution (Rousseeuw and Croux, 1993). Norms are skewed, so of
them the logarithm is judged. What is usual is worked out anew each time a sixteenth of the window is new, and a spike
does not enter it, so that a spike that lasts does not become usual. All ranks have the same numbers.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

from headrace.train.guards.options import Guards
from headrace.train.tally import Totals

_TO_DEVIATION = 1.4826
_LEAST_SHARE = 0.02
"""Values that hardly vary would make a spike of anything: a deviation is at least this share of the median."""


class Usual:
    """What the latest values make usual."""

    def __init__(self, window: int) -> None:
        self._values: deque[float] = deque(maxlen=window)
        self._every = max(1, window // 16)
        self._new = 0
        self._median = self._deviation = 0.0

    def score(self, value: float) -> float:
        """Robust standard deviations above the median; 0 while there are too few values."""
        return (value - self._median) / self._deviation if self._deviation else 0.0

    def add(self, value: float) -> None:
        """Take a value in."""
        self._values.append(value)
        self._new += 1
        if len(self._values) == self._values.maxlen and self._new >= self._every:
            self._work_out()

    def _work_out(self) -> None:
        self._median = statistics.median(self._values)
        deviation = _TO_DEVIATION * statistics.median([abs(value - self._median) for value in self._values])
        self._deviation = max(deviation, _LEAST_SHARE * abs(self._median), 1e-12)
        self._new = 0

    def state_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return {
            "values": list(self._values),
            "new": self._new,
            "median": self._median,
            "deviation": self._deviation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved one; of a longer window the latest values are taken."""
        self._values.clear()
        self._values.extend(map(float, state["values"]))
        self._new = int(state["new"])
        self._median, self._deviation = float(state["median"]), float(state["deviation"])


class Spikes:
    """Judges each step by its loss and its norm of the gradients."""

    def __init__(self, options: Guards) -> None:
        self.in_a_row = 0
        """Spikes since the last step that was none."""
        self._threshold = options.spike_score
        self._usual = {"loss": Usual(options.spike_window), "gradient norm": Usual(options.spike_window)}

    def judge(self, totals: Totals) -> dict[str, float]:
        """The scores beyond the threshold, by name; none: the step is as usual, and says what is."""
        if self._threshold is None or totals.loss is None:
            return {}
        values = [("loss", self._usual["loss"], totals.loss)]
        if totals.grad_norm:
            values.append(("gradient norm", self._usual["gradient norm"], math.log(totals.grad_norm)))
        found = {}
        for name, usual, value in values:
            if (score := usual.score(value)) > self._threshold:
                found[name] = score
        if found:
            self.in_a_row += 1
            return found
        self.in_a_row = 0
        for _, usual, value in values:
            usual.add(value)
        return found

    def state_dict(self) -> dict[str, Any]:
        """A JSON value, the same on every rank."""
        return {"in_a_row": self.in_a_row, **{name: usual.state_dict() for name, usual in self._usual.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved one."""
        self.in_a_row = int(state["in_a_row"])
        for name, usual in self._usual.items():
            usual.load_state_dict(state[name])
