"""What a chart over steps is made of: its series, its axes and what happened at which step.

Nothing is drawn here. The same chart is drawn twice: as SVG (`drawing.py`), which reads without JavaScript and prints,
and by the page's script, from the same numbers in full (`figures.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from headrace.report.series import Array

Style: TypeAlias = Literal["line", "faint", "dots", "band", "bars", "peak"]
MarkKind: TypeAlias = Literal["restart", "checkpoint", "guard", "alarm", "feed"]


@dataclass(frozen=True)
class Series:
    """One quantity over steps. `style` is how it is drawn; `css` is the class that gives its colour.

    A band has two sets of values, `y` (low) and `top` (high), and no entry in the legend of its own. Bars are stacked
    in their order; a peak is the largest value behind a mean, as a faint line.
    """

    name: str
    x: Array
    y: Array
    style: Style = "line"
    css: str = "accent"
    top: Array | None = None

    def columns(self) -> Iterator[tuple[str, Array]]:
        """Its values with what they are called."""
        if self.style == "band" and self.top is not None:
            yield "lowest", self.y
            yield "highest", self.top
        else:
            yield self.name, self.y


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step, and what it was. A restart has a `width`: the steps that were done again."""

    step: float
    kind: MarkKind
    width: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart over steps: `title (unit)`, its series, and what is said about it."""

    title: str
    unit: str
    summary: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    scale: Literal["linear", "zero", "log"] = "linear"
    top: float | None = None
    """The upper end of the axis, where a few values beyond it would make the others too small to read."""
    note: str = ""
    steps_per_point: int = 1
    explain_marks: bool = True
    """Whether the legend says what the marks are; small charts leave that to the large ones."""
    span: tuple[float, float] | None = None
    """First and last step that the axis has at least: the run's, so that charts of a page stand below each other."""
    drawn_points: int = 400
    """How many points of a series the SVG has at most; the script's have all."""
    along: str = "step"
    """What x counts: steps, which are whole numbers, or a unit of time."""

    @property
    def bars(self) -> list[Series]:
        """The series that are stacked."""
        return [series for series in self.series if series.style == "bars"]


@dataclass(frozen=True)
class Axes:
    """From values to places in the drawing, 0 to 1 from the left and from the bottom."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool

    @classmethod
    def of(cls, chart: Chart) -> Axes:
        """Those that hold all that is drawn, up to the chart's `top`."""
        x_low, x_high = _step_range(chart)
        low, high = _value_range(chart)
        if chart.top is not None:
            high = min(high, chart.top)
        log = chart.scale == "log" and low > 0
        if not log:
            low = 0.0 if chart.scale == "zero" else low - 0.04 * (high - low)
            high += 0.04 * (high - low)
        if not high > low:
            low, high = (low / 2, low * 2) if log else (low - 0.5, low + 0.5)
        return cls(x_low, x_high, low, high, log)

    def x(self, values: Array) -> Array:
        """Where steps are."""
        return np.asarray((values - self.x_low) / (self.x_high - self.x_low))

    def y(self, values: Array) -> Array:
        """Where values are; those beyond the axis lie just beyond it."""
        low, high = self.y_low, self.y_high
        if self.log:
            values, low, high = np.log(np.maximum(values, low / 10)), math.log(low), math.log(high)
        return np.asarray(np.clip((values - low) / (high - low), -0.02, 1.02))


def _step_range(chart: Chart) -> tuple[float, float]:
    xs = np.concatenate([series.x for series in chart.series])
    low, high = float(xs.min()), float(xs.max())
    if chart.span is not None:
        low, high = min(low, chart.span[0]), max(high, chart.span[1])
    before = chart.steps_per_point if chart.bars else 0  # a bar stands on the steps up to its own
    least = 1 if chart.along == "step" else 1e-3
    return low - before, max(high, low - before + least)


def _value_range(chart: Chart) -> tuple[float, float]:
    ys = [series.y for series in chart.series if series.style != "bars"]
    ys += [series.top for series in chart.series if series.top is not None]
    if chart.bars:
        ys.append(np.sum([np.nan_to_num(series.y) for series in chart.bars], axis=0))
    values = np.concatenate([y[np.isfinite(y)] for y in ys])
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
