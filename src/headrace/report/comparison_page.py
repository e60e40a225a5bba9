"""A comparison of runs as one self-contained HTML page, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from headrace.errors import StorageError
from headrace.report import formatting as fmt
from headrace.report.charts import Chart, Series
from headrace.report.comparison import Comparison
from headrace.report.figures import render
from headrace.report.page import KEYS, document
from headrace.report.paired import Axis, Curve, on_one_axis
from headrace.report.parts import part_css, part_name

_COLORS = ("accent", "second", "compute", "communication", "wait", "copy", "checkpoint", "rest")
_TIME_UNITS = ((7200.0, 3600.0, "h"), (300.0, 60.0, "min"), (0.0, 1.0, "s"))
_LONGEST = 60

_Row = tuple[str, tuple[str, ...]]
"""What it is, and what to show of each run."""


def write_comparison(compared: Comparison, output: str | Path | None = None) -> Path:
    """Write the page of a comparison; gives its path.

    Without `output` it is `comparison.html` in the folder of the last run. An older page is replaced. Raises
    StorageError where it cannot be written.
    """
    path = Path(output) if output is not None else compared.runs[-1].path.parent / "comparison.html"
    try:
        path.write_text(comparison_page(compared), "utf-8")
    except OSError as err:
        raise StorageError(f"cannot write the comparison to {path}: {err.strerror}") from err
    return path


def comparison_page(compared: Comparison) -> str:
    """The page as HTML."""
    body = (_head(compared), _results(compared), _time(compared), _losses(compared), _changes(compared))
    footer = f"<footer>Written by headrace from the {escape(compared.runs[0].path.name)} of each run alone.</footer>"
    return document(f"{' and '.join(compared.names)}: {compared.sentence}", "".join(body) + footer)


def comparison_text(compared: Comparison) -> str:
    """The same without charts, in aligned columns."""
    rows: list[_Row] = [("", compared.names), *_result_rows(compared), *_part_rows(compared)]
    rows += [(f"{change.name} ({change.group})", _each(change.values, _short)) for change in compared.changes]
    widths = [max(map(len, column)) for column in zip(*((name, *values) for name, values in rows), strict=True)]
    lines = ["  ".join([name.ljust(widths[0]), *map(str.rjust, values, widths[1:])]).rstrip() for name, values in rows]
    return "\n".join([compared.sentence, *compared.warnings, "", *lines])


def _head(compared: Comparison) -> str:
    first, _, rest = compared.sentence.partition("; ")
    warnings = "".join(f'<li class="failure">{escape(line)}</li>' for line in compared.warnings)
    names = " ".join(f"<strong>{escape(name)}</strong>" for name in compared.names)
    return (
        f'<header><div class="top"><span>headrace comparison</span>{names}</div><h1>{_unbroken(first)}.</h1>'
        f'<p class="lead">{_unbroken(rest[:1].upper() + rest[1:])}</p>'
        + (f'<ul class="evidence">{warnings}</ul>' if warnings else "")
        + "</header>"
    )


def _results(compared: Comparison) -> str:
    judged = zip(compared.names, compared.table["verdict"], strict=True)
    verdicts = [_cells(name, [sentence], "left wrap") for name, sentence in judged]
    return _section(
        "Side by side",
        "Rates leave out the first step of every start. Losses are means over the last steps, a 25th of the run.",
        f'<div class="card">{_table(("", *compared.names), _result_rows(compared))}</div>'
        f'<div class="card"><table><tbody>{"".join(verdicts)}</tbody></table></div>',
    )


def _result_rows(compared: Comparison) -> list[_Row]:
    table = compared.table
    base = table["samples_per_sec"][0]
    ratios = tuple(f"{rate / base:.2f}" if rate and base else fmt.UNKNOWN for rate in table["samples_per_sec"])
    rows: list[_Row] = [
        ("samples/s", _each(table["samples_per_sec"], fmt.number)),
        (f"times {compared.names[0]}", ratios),
        ("time a step", _each(table["sec_per_step"], fmt.seconds)),
        ("accelerator utilization", _each(table["au"], fmt.percent)),
        ("steps", _each(table["steps"], fmt.count)),
        ("time of all steps", _each(table["training_sec"], fmt.seconds)),
        ("restarts", _each(table["restarts"], fmt.count)),
        ("loss", _each(table["loss"], fmt.number)),
    ]
    if compared.equal_steps is not None:
        at = f"loss at step {fmt.count(compared.equal_steps)}"
        rows.append((at, _each(table["loss_at_equal_steps"], fmt.number)))
    if compared.equal_sec is not None:
        at = f"loss after {fmt.seconds(compared.equal_sec)} of steps"
        rows.append((at, _each(table["loss_at_equal_sec"], fmt.number)))
    metrics = [name for name in table if name.startswith(("evaluation ", "training "))]
    return rows + [(name, _each(table[name], fmt.number)) for name in metrics]


def _time(compared: Comparison) -> str:
    rows = _part_rows(compared)
    if not rows:
        return ""
    bars = "".join(_bar(compared, k, name) for k, name in enumerate(compared.names))
    return _section(
        "Where the time goes",
        "Of the wall time of every step but the first of each start.",
        f'<div class="card">{bars}{_table(("part", *compared.names), rows, _parts(compared))}</div>',
    )


def _bar(compared: Comparison, run: int, name: str) -> str:
    parts = [(part, compared.table[f"{part}_share"][run]) for part in _parts(compared)]
    known = [(part_css(part), share) for part, share in parts if share]
    spans = "".join(f'<span class="{css}" style="flex:{share:.5f}"></span>' for css, share in known)
    return f'<p class="note">{escape(name)}</p><div class="split" aria-hidden="true">{spans}</div>' if spans else ""


def _part_rows(compared: Comparison) -> list[_Row]:
    """Of each part its share, and its time a step."""
    rows = []
    for part in _parts(compared):
        pairs = zip(compared.table[f"{part}_share"], compared.table["sec_per_step"], strict=True)
        values = tuple(
            fmt.UNKNOWN if share is None or sec is None else f"{fmt.percent(share)}, {fmt.seconds(share * sec)}"
            for share, sec in pairs
        )
        rows.append((part_name(part), values))
    return rows


def _parts(compared: Comparison) -> list[str]:
    return [name.removesuffix("_share") for name in compared.table if name.endswith("_share")]


def _losses(compared: Comparison) -> str:
    curves = [Curve.of(run) for run in compared.runs]
    charts = [chart for axis in ("steps", "sec") if (chart := _chart(compared, curves, axis)) is not None]
    what = "Training loss, smoothed. Time is that of the steps: evaluations and what a restart did again are left out."
    return _section("Loss", what, "".join(map(render, charts)) + KEYS) if charts else ""


def _chart(compared: Comparison, curves: Sequence[Curve], axis: Axis) -> Chart | None:
    known = [k for k, curve in enumerate(curves) if len(curve.loss) and curve.along(axis)[-1] > 0]
    if not known:
        return None
    points, losses = on_one_axis([curves[k] for k in known], axis)
    factor, unit = (1.0, "step") if axis == "steps" else _time_unit(float(points[-1]))
    series = [
        Series(compared.names[k], points / factor, loss, css=_COLORS[k]) for k, loss in zip(known, losses, strict=True)
    ]
    summary = _summary(compared, axis)
    wide = all((s.y[s.y == s.y] > 0).all() for s in series) and _ratio(series) > 20
    title = "Loss at equal steps" if axis == "steps" else "Loss at equal time"
    what = "mean over the samples of a step" + (", logarithmic" if wide else "")
    return Chart(title, what, summary, series, scale="log" if wide else "linear", along=unit)


def _ratio(series: Sequence[Series]) -> float:
    values = [value for one in series for value in one.y.tolist() if value == value]
    return float(max(values) / min(values))


def _summary(compared: Comparison, axis: Axis) -> str:
    end = compared.equal_steps if axis == "steps" else compared.equal_sec
    if end is None:
        return "The runs have no part in common."
    at = f"At step {fmt.count(end)}" if axis == "steps" else f"After {fmt.seconds(end)} of steps"
    losses = zip(compared.names, compared.table[f"loss_at_equal_{axis}"], strict=True)
    return f"{at} the loss of " + ", of ".join(f"{name} is {fmt.number(loss)}" for name, loss in losses) + "."


def _time_unit(most_sec: float) -> tuple[float, str]:
    return next((factor, unit) for least, factor, unit in _TIME_UNITS if most_sec >= least)


def _changes(compared: Comparison) -> str:
    same = f"In {fmt.count(compared.num_same)} others they agree."
    if not compared.changes:
        return _section("What was changed", f"Nothing that their records name. {same}", "")
    rows = [
        _cells(f"{change.group}: {change.name}", _each(change.values, _text), "left wrap")
        for change in compared.changes
    ]
    head = "".join(f'<th class="left">{escape(name)}</th>' for name in ("", *compared.names))
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    return _section("What was changed", same, f'<div class="card">{body}</div>')


def _each(values: Iterable[Any], show: Callable[[Any], str]) -> tuple[str, ...]:
    return tuple(show(value) for value in values)


def _text(value: str | None) -> str:
    return fmt.UNKNOWN if value is None else value


def _short(value: str | None) -> str:
    text = _text(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _table(head: Sequence[str], rows: Sequence[_Row], swatches: Sequence[str] = ()) -> str:
    """A row of titles and the rows, each with the colour of the part that it tells of."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    parts = swatches or [""] * len(rows)
    body = "".join(_cells(name, values, swatch=part) for (name, values), part in zip(rows, parts, strict=True))
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(name: str, values: Iterable[str], css: str = "", swatch: str = "") -> str:
    cells = "".join(f'<td class="{css}">{escape(value)}</td>' for value in values)
    color = f'<i class="swatch {part_css(swatch)}"></i>' if swatch else ""
    return f"<tr><th>{color}{escape(name)}</th>{cells}</tr>"


def _unbroken(text: str) -> str:
    """No line break between a number and its per cent sign."""
    return escape(text).replace(" %", "&nbsp;%")


def _section(title: str, what: str, body: str) -> str:
    return f'<section><h2>{title}</h2><p class="what">{escape(what)}</p>{body}</section>'
