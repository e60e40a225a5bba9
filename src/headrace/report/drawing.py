"""Charts as SVG, drawn here: they read without JavaScript, and print.

The SVG is stretched to the width at hand and holds shapes only, whose strokes keep their width; every word is HTML
beside it. So text has one size on a phone and on a wide screen. It has fewer points than the numbers beside it where a
series has many: a line is the mean of neighbours, a band and faint raw values keep their extremes.
"""

from __future__ import annotations

import math
from html import escape

import numpy as np

from headrace.report.charts import Axes, Chart, MarkKind, Series
from headrace.report.formatting import count, tick
from headrace.report.series import Array, Buckets, log_ticks, nice_ticks

_WIDTH, _HEIGHT = 1000.0, 400.0
MOST_BARS = 120
_LANES: dict[MarkKind, tuple[float, float]] = {
    "restart": (0, 1),
    "checkpoint": (0.955, 1),
    "guard": (0, 0.05),
    "alarm": (0.06, 0.11),
    "feed": (0.12, 0.17),
}
"""From where to where a mark reaches, as shares of the height from the top."""


def svg(chart: Chart, axes: Axes) -> str:
    """The shapes of a chart."""
    grid = "".join(f'<line class="grid" x1="0" x2="{_WIDTH:g}" {_at_y(place)}/>' for place, _ in _y_ticks(axes))
    shapes = "".join(
        _shape(_coarse(series, MOST_BARS if chart.bars else chart.drawn_points), axes)
        for series in chart.series
        if series.style != "bars"
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" preserveAspectRatio="none" role="img">'
        f"<title>{escape(chart.title)}</title><desc>{escape(chart.summary)}</desc>"
        f"{grid}{_lost(chart, axes)}{_stack(chart, axes)}{shapes}{_marks(chart, axes)}</svg>"
    )


def y_labels(axes: Axes) -> str:
    """The words beside the drawing."""
    texts = [(place, tick(value)) for place, value in _y_ticks(axes)]
    labels = "".join(f'<span style="bottom:{100 * place:.2f}%">{text}</span>' for place, text in texts)
    width = max((len(text) for _, text in texts), default=0)
    return f'<div class="y" style="width:{width + 2}ch" aria-hidden="true">{labels}</div>'


def x_labels(axes: Axes, along: str) -> str:
    """The words below it; `along` is what x counts."""
    text = count if along == "step" else tick
    steps = [x for x in nice_ticks(axes.x_low, axes.x_high, 5) if along != "step" or x == round(x)]
    places = (100 * axes.x(np.array(steps))).tolist()
    labels = "".join(
        f'<span style="left:{place:.2f}%"{" class=last" if place > 96 else ""}>{text(step)}</span>'
        for place, step in zip(places, steps, strict=True)
    )
    return f'<div class="unit" aria-hidden="true">{escape(along)}</div><div class="x" aria-hidden="true">{labels}</div>'


def _coarse(series: Series, most: int) -> Series:
    """The same in at most so many points."""
    if len(series.x) <= most or series.style == "dots":
        return series
    if series.style == "faint":  # of every bucket both extremes, one after the other
        buckets = Buckets.of(len(series.x), most // 2)
        both = np.stack([buckets.low(series.y), buckets.high(series.y)], axis=1).ravel()
        return Series(series.name, np.repeat(buckets.last(series.x), 2), both, "faint", series.css)
    buckets = Buckets.of(len(series.x), most)
    x = buckets.last(series.x)
    if series.style == "band" and series.top is not None:
        low, high = buckets.low(series.y), buckets.high(series.top)
        return Series(series.name, x, low, "band", series.css, top=high)
    y = buckets.high(series.y) if series.style == "peak" else buckets.mean(series.y)
    return Series(series.name, x, y, series.style, series.css)


def _shape(series: Series, axes: Axes) -> str:
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


def _stack(chart: Chart, axes: Axes) -> str:
    bars = [_coarse(series, MOST_BARS) for series in chart.bars]
    if not bars:
        return ""
    edges = axes.x(np.append(axes.x_low, bars[0].x)) * _WIDTH
    base, shapes = np.zeros(len(bars[0].x)), []
    for series in bars:
        top = base + np.nan_to_num(series.y)
        shapes.append(_bars(series.css, edges, *((1 - axes.y(values)) * _HEIGHT for values in (base, top))))
        base = top
    return "".join(shapes)


def _bars(css: str, edges: Array, low: Array, high: Array) -> str:
    gaps = 0.04 * np.diff(edges)
    places = zip((edges[:-1] + gaps).tolist(), edges[1:].tolist(), low.tolist(), high.tolist(), strict=True)
    rectangles = "".join(
        f"M{left:.1f} {bottom:.1f}H{right:.1f}V{top:.1f}H{left:.1f}Z"
        for left, right, bottom, top in places
        if bottom - top > 0.05
    )
    return f'<path class="bars {css}" d="{rectangles}"/>'


def _lost(chart: Chart, axes: Axes) -> str:
    shapes = []
    for mark in chart.marks:
        if mark.kind == "restart" and mark.width:
            left, right = (np.clip(axes.x(np.array([mark.step, mark.step + mark.width])), 0, 1) * _WIDTH).tolist()
            shapes.append(f'<rect class="lost" x="{left:.1f}" y="0" width="{right - left:.1f}" height="{_HEIGHT:g}"/>')
    return "".join(shapes)


def _marks(chart: Chart, axes: Axes) -> str:
    shapes = []
    for kind, lane in _LANES.items():
        top, bottom = (share * _HEIGHT for share in lane)
        places = [float(axes.x(np.array([mark.step]))[0]) for mark in chart.marks if mark.kind == kind]
        lines = "".join(f"M{place * _WIDTH:.1f} {top:g}V{bottom:g}" for place in places if -0.001 <= place <= 1.001)
        shapes.append(f'<path class="mark {kind}" d="{lines}"/>' if lines else "")
    return "".join(shapes)


def _y_ticks(axes: Axes) -> list[tuple[float, float]]:
    values = log_ticks(axes.y_low, axes.y_high) if axes.log else nice_ticks(axes.y_low, axes.y_high, 4)
    return [(float(axes.y(np.array([value]))[0]), value) for value in values]


def _at_y(place: float) -> str:
    y = (1 - place) * _HEIGHT
    return f'y1="{y:.1f}" y2="{y:.1f}"'
