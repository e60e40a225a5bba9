"""A picture of curves as one SVG file: both axes logarithmic, a dot at each point that was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate

from headrace.report.formatting import tick
from headrace.report.series import log_ticks

_WIDTH, _HEIGHT = 460.0, 340.0
_LEFT, _TOP, _RIGHT, _BOTTOM = 62.0, 40.0, 12.0, 46.0
_LEGEND_LINE = 20.0
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-weight:600}.grid{stroke:#d8dee4}"
    "path{fill:none;stroke-width:2}"
)
_COLORS = ("#0b62c4", "#c2410c", "#1a7f37", "#8250df", "#57606a")


@dataclass(frozen=True)
class Curve:
    """Points (x, y), drawn where both are positive. One with `dashes` has the colour of the curve before it."""

    name: str
    points: Sequence[tuple[float, float]]
    dashes: str = ""
    """Lengths of strokes and gaps, such as "6 4"; else the line is whole."""


@dataclass(frozen=True)
class Panel:
    """One system of axes."""

    title: str
    x_name: str
    curves: Sequence[Curve]


def draw(panels: Sequence[Panel]) -> str:
    """The panels side by side, with one legend: their curves have the same names."""
    names = [(curve.name, curve.dashes) for curve in panels[0].curves]
    width, height = _WIDTH * len(panels), _HEIGHT + _LEGEND_LINE * (-(-len(names) // 2) + 0.5)
    drawn = "".join(f'<g transform="translate({_WIDTH * k:g} 0)">{_panel(p)}</g>' for k, p in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"><style>{_STYLE}</style>'
        f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>{drawn}{_legend(names, width)}</svg>\n'
    )


def _panel(panel: Panel) -> str:
    points = [(x, y) for curve in panel.curves for x, y in curve.points if x > 0 and y > 0]
    (x_low, x_high), (y_low, y_high) = ((min(v) / 1.3, max(v) * 1.3) for v in zip(*points, strict=True))

    def at_x(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(x / x_low) / math.log(x_high / x_low)

    def at_y(y: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * math.log(y / y_low) / math.log(y_high / y_low)

    bottom = _HEIGHT - _BOTTOM
    shapes = [f'<text class="title" x="{_LEFT:g}" y="22">{escape(panel.title)}</text>']
    for y in log_ticks(y_low, y_high):
        ends = f'x1="{_LEFT:g}" x2="{_WIDTH - _RIGHT:g}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"'
        label = f'<text x="{_LEFT - 6:g}" y="{at_y(y) + 4:.1f}" text-anchor="end">{tick(y)}</text>'
        shapes.append(f'<line class="grid" {ends}/>{label}')
    labels = [(at_x(x), 17, tick(x)) for x in log_ticks(x_low, x_high)]
    labels.append(((_LEFT + _WIDTH - _RIGHT) / 2, 36, escape(panel.x_name)))
    shapes += [f'<text x="{x:.1f}" y="{bottom + y:g}" text-anchor="middle">{text}</text>' for x, y, text in labels]
    colors = _colors([curve.dashes for curve in panel.curves])
    for curve, color in zip(panel.curves, colors, strict=True):
        line = [(at_x(x), at_y(y)) for x, y in curve.points if x > 0 and y > 0]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line)
        shapes.append(f'<path d="{path}" stroke="{color}" stroke-dasharray="{curve.dashes}"/>')
        shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in line]
    return "".join(shapes)


def _legend(names: Sequence[tuple[str, str]], width: float) -> str:
    shapes = []
    for k, ((name, dashes), color) in enumerate(zip(names, _colors([d for _, d in names]), strict=True)):
        x, y = _LEFT + k % 2 * (width - _LEFT) / 2, _HEIGHT + _LEGEND_LINE * (k // 2 + 0.5)
        shapes.append(f'<path d="M{x:g} {y - 4:g}h26" stroke="{color}" stroke-dasharray="{dashes}"/>')
        shapes.append(f'<text x="{x + 34:g}" y="{y:g}">{escape(name)}</text>')
    return "".join(shapes)


def _colors(dashes: Sequence[str]) -> list[str]:
    numbers = accumulate(int(not one) for one in dashes)
    return [_COLORS[number - 1] for number in numbers]
