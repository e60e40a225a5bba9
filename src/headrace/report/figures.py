"""A chart as a part of the page: the drawing, its legend, the numbers as a table, and as JSON for the page's script.

The script (`charts.js`, with uPlot) draws the chart again from the JSON, with values under the pointer and zoom. Where
it does not run, or the page is printed, the SVG is what one sees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import orjson

from headrace.report.charts import Axes, Chart, Mark, MarkKind, Series
from headrace.report.drawing import svg, x_labels, y_labels
from headrace.report.formatting import UNKNOWN, count, number
from headrace.report.series import Array

_TABLE_ROWS = 24
_CLOCK_POINTS = 400
_MARK_NAMES: dict[MarkKind, str] = {
    "restart": "restart",
    "checkpoint": "checkpoint",
    "guard": "guard",
    "alarm": "alarm",
    "feed": "feed replaced",
}


def render(chart: Chart) -> str:
    """The chart as a <figure>."""
    axes = Axes.of(chart)
    title, unit = escape(chart.title), escape(chart.unit)
    return (
        f'<figure class="chart"><figcaption><h3>{title}</h3><span class="unit">{unit}</span></figcaption>'
        f'{_legend(chart)}<div class="plot" role="group" aria-label="{title}{f", {unit}" if unit else ""}">'
        f'{y_labels(axes)}<div class="area">{svg(chart, axes)}</div>{x_labels(axes, chart.along)}</div>'
        f'<p class="note">{escape(chart.note)}</p>{_table(chart)}'
        f'<script type="application/json" class="values">{_values(chart, axes)}</script></figure>'
    )


def shared(marks: Sequence[Mark], steps: Array, times: Array, began: float | None) -> str:
    """What the script needs once for all charts: the marks, and when some steps were done (seconds since the start)."""
    known = np.flatnonzero(np.isfinite(steps) & np.isfinite(times)) if began is not None else np.zeros(0, np.intp)
    rows = known[np.unique(np.linspace(0, max(0, len(known) - 1), _CLOCK_POINTS).round().astype(int))[: len(known)]]
    value = {
        "marks": [_mark(mark) for mark in marks],
        "steps": [int(step) for step in steps[rows].tolist()],
        "sec": _short(times[rows] - (began or 0.0)),
    }
    return f'<script type="application/json" id="shared">{_json(value)}</script>'


def _legend(chart: Chart) -> str:
    named = [series for series in chart.series if series.style != "band"]
    items = [f'<li><i class="key {series.style} {series.css}"></i>{escape(series.name)}</li>' for series in named]
    marks = chart.marks if chart.explain_marks else ()
    kinds = {mark.kind for mark in marks}
    items += [f'<li><i class="key mark {kind}"></i>{name}</li>' for kind, name in _MARK_NAMES.items() if kind in kinds]
    if any(mark.kind == "restart" and mark.width for mark in marks):
        items.append('<li><i class="key lost"></i>steps done again</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) > 1 else ""


def _values(chart: Chart, axes: Axes) -> str:
    xs: list[Array] = []  # most series of a chart have the same steps: each is written once
    series = [_series(one, xs) for one in chart.series]
    counts = chart.along == "step"
    value = {
        "x": [axes.x_low, axes.x_high],
        "y": [axes.y_low, axes.y_high],
        "scale": "log" if axes.log else chart.scale,
        "summary": chart.summary,
        "stepsPerPoint": chart.steps_per_point,
        "along": chart.along,
        "steps": [[int(step) for step in x.tolist()] if counts else _short(x, 7) for x in xs],
        "series": series,
    }
    return _json(value)


def _json(value: object) -> str:
    """For within a <script>, which no text may end."""
    return orjson.dumps(value).decode().replace("<", "\\u003c")


def _series(series: Series, xs: list[Array]) -> dict[str, object]:
    at = next((i for i, x in enumerate(xs) if np.array_equal(x, series.x)), len(xs))
    if at == len(xs):
        xs.append(series.x)
    columns = [{"name": name, "y": _short(y)} for name, y in series.columns()]
    return {"style": series.style, "css": series.css, "steps": at, "columns": columns}


def _mark(mark: Mark) -> dict[str, object]:
    return {"kind": mark.kind, "step": mark.step, "width": mark.width, "text": mark.text}


def _short(values: Array, digits: int = 4) -> list[float | int | None]:
    """To so many digits: four are what hovering shows."""
    rounded = [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]
    return [int(value) if value is not None and value.is_integer() and abs(value) < 1e6 else value for value in rounded]


def _table(chart: Chart) -> str:
    columns = [(name, series.x, y) for series in chart.series for name, y in series.columns()]
    longest = max((x for _, x, _ in columns), key=len)
    steps = longest[np.unique(np.linspace(0, len(longest) - 1, _TABLE_ROWS).round().astype(int))]
    head = "".join(f"<th>{escape(name)}</th>" for name, _, _ in columns)
    text = count if chart.along == "step" else number
    rows = "".join(f"<tr><th>{text(step)}</th>{_cells(columns, float(step))}</tr>" for step in steps)
    return (
        "<details><summary>As a table</summary><div class='scroll'><table><thead><tr>"
        f"<th>{escape(chart.along)}</th>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _cells(columns: Sequence[tuple[str, Array, Array]], step: float) -> str:
    cells = []
    for _, x, y in columns:
        at = np.flatnonzero(x == step)
        cells.append(f"<td>{number(float(y[at[0]])) if len(at) else UNKNOWN}</td>")
    return "".join(cells)
