"""Charts as plain HTML and SVG, drawn here: they read without JavaScript and print.

The SVG is stretched to the width at hand and holds shapes only, whose strokes keep their width; every word is HTML
beside it. So text has one size on a phone and on a wide screen. The hover values are the drawn numbers, as JSON beside
the chart, for the page's script; the same numbers stand in a table for those who cannot see or hover.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
import orjson

from headrace.report.formatting import UNKNOWN, count, number, tick
from headrace.report.series import Array, log_ticks, nice_ticks

_WIDTH, _HEIGHT = 1000.0, 400.0
_TABLE_ROWS = 24


@dataclass(frozen=True)
class Series:
    """One quantity over steps. `style` is how it is drawn; `css` is the class that gives its colour.

    A band has two sets of values, `y` (low) and `top` (high), and no entry in the legend of its own.
    """

    name: str
    x: Array
    y: Array
    style: Literal["line", "faint", "dots", "band", "bars"] = "line"
    css: str = "accent"
    top: Array | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened at a step. A restart has a `width`: the steps that had to be done again."""

    step: float
    kind: Literal["restart", "checkpoint"]
    width: float = 0.0


@dataclass(frozen=True)
class Chart:
    """A chart over steps: `title (unit)`, its series (bars are stacked in their order), and what is said about it."""

    title: str
    unit: str
    summary: str
    series: Sequence[Series]
    marks: Sequence[Mark] = ()
    scale: Literal["linear", "zero", "log"] = "linear"
    top: float | None = None
    """The upper end of the axis, where a few values beyond it would make the others too small to read."""
    note: str = ""
    explain_marks: bool = True
    """Whether the legend says what the marks are; small charts leave that to the large ones."""


@dataclass(frozen=True)
class _Axes:
    """From values to places in the drawing."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log: bool

    def x(self, values: Array) -> Array:
        return np.asarray((values - self.x_low) / (self.x_high - self.x_low))

    def y(self, values: Array) -> Array:
        low, high = self.y_low, self.y_high
        if self.log:
            values, low, high = np.log(np.maximum(values, low / 10)), math.log(low), math.log(high)
        return np.asarray(np.clip((values - low) / (high - low), -0.02, 1.02))


def render(chart: Chart) -> str:
    """The chart as a <figure>."""
    axes = _axes(chart)
    title, unit = escape(chart.title), escape(chart.unit)
    return (
        f'<figure class="chart"><figcaption><h3>{title}</h3><span class="unit">{unit}</span></figcaption>'
        f'{_legend(chart)}<div class="plot" role="group" aria-label="{title}, {unit}">{_y_labels(axes)}'
        f'<div class="area">{_svg(chart, axes)}</div>{_x_labels(axes)}</div>'
        f'<p class="note">{escape(chart.note)}</p>{_table(chart)}'
        f'<script type="application/json" class="values">{_values(chart, axes)}</script></figure>'
    )


def _axes(chart: Chart) -> _Axes:
    xs = np.concatenate([series.x for series in chart.series])
    ys = [series.y for series in chart.series if series.style != "bars"]
    ys += [series.top for series in chart.series if series.top is not None]
    bars = [series.y for series in chart.series if series.style == "bars"]
    if bars:
        ys.append(np.sum(bars, axis=0))
    values = np.concatenate([y[np.isfinite(y)] for y in ys])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if chart.top is not None:
        high = min(high, chart.top)
    log = chart.scale == "log" and low > 0
    if not log:
        low = 0.0 if chart.scale == "zero" else low - 0.04 * (high - low)
        high += 0.04 * (high - low)
    if not high > low:
        low, high = (low / 2, low * 2) if log else (low - 0.5, low + 0.5)
    x_low, x_high = float(xs.min()), float(xs.max())
    half = 0.5 * (x_high - x_low) / max(1, len(bars[0])) if bars else 0.0
    return _Axes(x_low - half, max(x_high + half, x_low + 1), low, high, log)


def _svg(chart: Chart, axes: _Axes) -> str:
    grid = "".join(f'<line class="grid" x1="0" x2="{_WIDTH:g}" {_at_y(place)}/>' for place, _ in _y_ticks(axes))
    base = np.zeros(0)
    shapes = []
    for series in chart.series:
        if series.style == "bars":
            base = np.zeros(len(series.y)) if not len(base) else base
            shapes.append(_bars(series, base, axes))
            base = base + np.nan_to_num(series.y)
        else:
            shapes.append(_shape(series, axes))
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" preserveAspectRatio="none" role="img">'
        f"<title>{escape(chart.title)}</title><desc>{escape(chart.summary)}</desc>"
        f"{grid}{_lost(chart, axes)}{''.join(shapes)}{_marks(chart, axes)}</svg>"
    )


def _shape(series: Series, axes: _Axes) -> str:
    x = axes.x(series.x) * _WIDTH
    y = (1 - axes.y(series.y)) * _HEIGHT
    if series.style == "band" and series.top is not None:
        top = (1 - axes.y(series.top)) * _HEIGHT
        known = np.isfinite(y) & np.isfinite(top)
        outline = np.concatenate([x[known], x[known][::-1]]), np.concatenate([top[known], y[known][::-1]])
        return f'<path class="band {series.css}" d="{_path(*outline)}Z"/>' if known.any() else ""
    if series.style == "dots":
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True) if math.isfinite(b))
        return f'<path class="dots {series.css}" d="{dots}"/>'
    return f'<path class="{series.style} {series.css}" d="{_path(x, y)}"/>'


def _path(x: Array, y: Array) -> str:
    """A line through the points; it is broken where a value is unknown."""
    words, pen = [], "M"
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(b):
            # A line of no length first: with round ends it is a dot, should the point have no neighbour.
            words.append(f"M{a:.1f} {b:.1f}h0" if pen == "M" else f"L{a:.1f} {b:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(words)


def _bars(series: Series, base: Array, axes: _Axes) -> str:
    half = _WIDTH / 2 / max(1, len(series.x)) * 0.96
    centres = axes.x(series.x) * _WIDTH
    low, high = ((1 - axes.y(values)) * _HEIGHT for values in (base, base + np.nan_to_num(series.y)))
    rectangles = "".join(
        f"M{x - half:.1f} {b:.1f}H{x + half:.1f}V{t:.1f}H{x - half:.1f}Z"
        for x, b, t in zip(centres.tolist(), low.tolist(), high.tolist(), strict=True)
        if b - t > 0.05
    )
    return f'<path class="bars {series.css}" d="{rectangles}"/>'


def _lost(chart: Chart, axes: _Axes) -> str:
    shapes = []
    for mark in chart.marks:
        if mark.kind == "restart" and mark.width:
            left, right = (np.clip(axes.x(np.array([mark.step, mark.step + mark.width])), 0, 1) * _WIDTH).tolist()
            shapes.append(f'<rect class="lost" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{_HEIGHT:g}"/>')
    return "".join(shapes)


def _marks(chart: Chart, axes: _Axes) -> str:
    shapes = []
    for mark in chart.marks:
        place = float(axes.x(np.array([mark.step]))[0])
        if -0.001 <= place <= 1.001:
            top = 0 if mark.kind == "restart" else _HEIGHT * 0.955
            shapes.append(f'<path class="mark {mark.kind}" d="M{place * _WIDTH:.1f} {top:g}V{_HEIGHT:g}"/>')
    return "".join(shapes)


def _y_ticks(axes: _Axes) -> list[tuple[float, float]]:
    values = log_ticks(axes.y_low, axes.y_high) if axes.log else nice_ticks(axes.y_low, axes.y_high, 4)
    return [(float(axes.y(np.array([value]))[0]), value) for value in values]


def _at_y(place: float) -> str:
    y = (1 - place) * _HEIGHT
    return f'y1="{y:.1f}" y2="{y:.1f}"'


def _y_labels(axes: _Axes) -> str:
    texts = [(place, tick(value)) for place, value in _y_ticks(axes)]
    labels = "".join(f'<span style="bottom:{100 * place:.2f}%">{text}</span>' for place, text in texts)
    width = max((len(text) for _, text in texts), default=0)
    return f'<div class="y" style="width:{width + 2}ch" aria-hidden="true">{labels}</div>'


def _x_labels(axes: _Axes) -> str:
    steps = [step for step in nice_ticks(axes.x_low, axes.x_high, 5) if step == round(step)]
    places = (100 * axes.x(np.array(steps))).tolist()
    labels = "".join(
        f'<span style="left:{place:.2f}%"{" class=last" if place > 96 else ""}>{count(step)}</span>'
        for place, step in zip(places, steps, strict=True)
    )
    return f'<div class="unit" aria-hidden="true">step</div><div class="x" aria-hidden="true">{labels}</div>'


def _legend(chart: Chart) -> str:
    named = [series for series in chart.series if series.style != "band"]
    items = [f'<li><i class="key {series.style} {series.css}"></i>{escape(series.name)}</li>' for series in named]
    marks = chart.marks if chart.explain_marks else ()
    kinds = {mark.kind for mark in marks}
    items += [f'<li><i class="key mark {kind}"></i>{kind}</li>' for kind in ("restart", "checkpoint") if kind in kinds]
    if any(mark.kind == "restart" and mark.width for mark in marks):
        items.append('<li><i class="key lost"></i>steps done again</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) > 1 else ""


def _columns(chart: Chart) -> list[tuple[str, Array, Array]]:
    columns = []
    for series in chart.series:
        if series.style == "band" and series.top is not None:
            columns += [("lowest", series.x, series.y), ("highest", series.x, series.top)]
        else:
            columns.append((series.name, series.x, series.y))
    return columns


def _values(chart: Chart, axes: _Axes) -> str:
    columns = [
        {"name": name, "x": _short(axes.x(x), 4), "step": _short(x, 9), "y": _short(y, 4)}
        for name, x, y in _columns(chart)
    ]
    return orjson.dumps({"unit": chart.unit, "series": columns}).decode().replace("<", "\\u003c")


def _short(values: Array, digits: int) -> list[float | None]:
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


def _table(chart: Chart) -> str:
    columns = _columns(chart)
    lengths = {len(x) for _, x, _ in columns}
    longest = max(columns, key=lambda column: len(column[1]))
    steps = (
        longest[1][np.unique(np.linspace(0, len(longest[1]) - 1, _TABLE_ROWS).round().astype(int))] if lengths else ()
    )
    head = "".join(f"<th>{escape(name)}</th>" for name, _, _ in columns)
    rows = "".join(f"<tr><th>{count(step)}</th>{_cells(columns, float(step))}</tr>" for step in steps)
    return (
        "<details><summary>As a table</summary><div class='scroll'><table><thead><tr><th>step</th>"
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _cells(columns: Iterable[tuple[str, Array, Array]], step: float) -> str:
    cells = []
    for _, x, y in columns:
        at = np.flatnonzero(x == step)
        cells.append(f"<td>{number(float(y[at[0]])) if len(at) else UNKNOWN}</td>")
    return "".join(cells)
