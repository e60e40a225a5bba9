"""The rule about what steps learn: spikes of the loss."""

from __future__ import annotations

import statistics
from collections import deque

from headrace.alarms.rule import Event, Reading, number

_WINDOW, _EVERY = 128, 8
_TO_DEVIATION = 1.4826
_LEAST_SHARE = 0.02
"""A loss that hardly varies would make a spike of anything: a deviation is at least this share of the median."""
_WELL_STEPS = 16


class LossSpike:
    """How far a loss is above the median of the latest ones, in robust standard deviations (1.4826 MAD).

    A spike does not become usual, so one that lasts is one. Well is a row of 16 steps without any.
    """

    name = "loss_spike"
    kinds = ("step",)

    def __init__(self, score: float) -> None:
        self._score = score
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._new = 0
        self._median = self._deviation = self._loss = 0.0
        self._row = 0

    def take(self, event: Event) -> Reading | None:
        """A reading at each spike, once there were 128 losses, and when there was none for long enough."""
        loss = number(event, "loss")
        if loss is None:
            return None
        score = (loss - self._median) / self._deviation if self._deviation else 0.0
        wrong = score > self._score
        self._row = 0 if wrong else self._row + 1
        if not wrong:
            self._add(loss)
        self._loss = loss
        if not wrong and self._row != _WELL_STEPS:
            return None
        return Reading(score, self._score, wrong, well=not wrong)

    def _add(self, loss: float) -> None:
        self._losses.append(loss)
        self._new += 1
        if len(self._losses) == _WINDOW and self._new >= _EVERY:
            self._new = 0
            self._median = statistics.median(self._losses)
            deviation = _TO_DEVIATION * statistics.median(abs(value - self._median) for value in self._losses)
            self._deviation = max(deviation, _LEAST_SHARE * abs(self._median), 1e-12)

    def message(self, reading: Reading) -> str:
        """With the loss and what was usual."""
        return (
            f"the loss {self._loss:.4g} is {reading.value:.3g} deviations above the median {self._median:.4g} "
            f"of the latest {_WINDOW} steps"
        )
