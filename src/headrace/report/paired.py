"""The losses of several runs at equal steps and after equal time.

Time is that of the steps, summed from the run's first one: evaluations, and the time between an end and a restart, are
left out, and so are steps that had to be done again. The loss at a point is the mean over the steps up to it, over a
25th of the shortest run, since single steps are noisy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from headrace.report.runlog import Run
from headrace.report.series import Array, Buckets, smooth

Axis: TypeAlias = Literal["steps", "sec"]

_MEAN_OVER = 25  # a 25th of the steps, as the lines of charts are smoothed
_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """The training loss of a run over its steps and over their time; equal lengths, NaN where nothing is known."""

    steps: Array
    sec: Array
    """Seconds from the beginning to the end of each step."""
    loss: Array

    @classmethod
    def of(cls, run: Run) -> Curve:
        """Of the history that counts, steps whose loss is finite."""
        sec = run.steps["sec"]
        total = np.cumsum(np.nan_to_num(sec)) if np.isfinite(sec).any() else np.full(len(sec), np.nan)
        known = np.isfinite(run.steps["loss"])
        return cls(run.steps["step"][known], total[known], run.steps["loss"][known])

    def along(self, axis: Axis) -> Array:
        """The steps, or the seconds."""
        return self.steps if axis == "steps" else self.sec


def common_end(curves: Sequence[Curve], axis: Axis) -> float | None:
    """The last step, or second, that all of the curves have; None where they have none in common."""
    axes = [curve.along(axis) for curve in curves]
    if not all(len(x) and np.isfinite(x[-1]) for x in axes):
        return None
    end = min(float(x[-1]) for x in axes)
    return end if all(x[0] <= end for x in axes) else None


def loss_at(curves: Sequence[Curve], axis: Axis, point: float | None) -> list[float | None]:
    """The mean loss of each over the steps that lead to `point`; None where it has none."""
    if point is None:
        return [None] * len(curves)
    ends = [int(np.searchsorted(curve.along(axis), point, "right")) for curve in curves]
    width = max(1, min(ends) // _MEAN_OVER)
    return [
        float(curve.loss[max(0, end - width) : end].mean()) if end else None
        for curve, end in zip(curves, ends, strict=True)
    ]


def on_one_axis(curves: Sequence[Curve], axis: Axis) -> tuple[Array, list[Array]]:
    """A few hundred points from the first to the last of all curves, and each one's smoothed loss there.

    The loss is NaN before a curve's beginning and after its end.
    """
    axes = [curve.along(axis) for curve in curves]
    points = np.linspace(min(x[0] for x in axes), max(x[-1] for x in axes), _POINTS)
    grid = np.unique(points.round()) if axis == "steps" else np.unique(points)
    return grid, [_smoothed(curve, axis, grid) for curve in curves]


def _smoothed(curve: Curve, axis: Axis, grid: Array) -> Array:
    buckets = Buckets.of(len(curve.loss), _POINTS)
    x, mean = buckets.last(curve.along(axis)), buckets.mean(curve.loss)
    return np.interp(grid, x, smooth(mean, len(x) // _MEAN_OVER), left=np.nan, right=np.nan)
