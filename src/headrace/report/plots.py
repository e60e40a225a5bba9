"""What a run's charts show: loss, metrics, throughput and the time split, in some thousand points.

A point stands for neighbouring steps: for their mean, and beside it their smallest and largest value, so that a single
bad step out of a million is still there (`series.py`). A page with many charts has fewer points in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headrace.report import formatting as fmt
from headrace.report.charts import Chart, Mark, MarkKind, Series
from headrace.report.drawing import MOST_BARS
from headrace.report.incidents import Incident
from headrace.report.parts import part_css, part_name, part_seconds
from headrace.report.runlog import Column, Run
from headrace.report.series import Array, Buckets, divide, smooth

_SMOOTHED_OVER = 25  # a line shows the mean over a 25th of the run, which keeps its turns and loses its noise
_MARKED: tuple[MarkKind, ...] = ("restart", "checkpoint", "guard", "alarm", "feed")
_MOST_MARKS = 100  # of a kind
_LONGEST_TEXT = 90
MOST_METRICS = 60
"""So many metrics have a chart; a page with more would be too large to open."""


@dataclass(frozen=True)
class Detail:
    """How many points a chart has at most: for the page's script, and in the drawing that reads without it."""

    points: int
    drawn: int

    @classmethod
    def of(cls, num_charts: int) -> Detail:
        """What keeps a page of so many charts below some 2 MB."""
        return cls(max(200, min(2000, 48_000 // num_charts)), max(60, min(400, 8_000 // num_charts)))


def marks_of(happened: Sequence[Incident]) -> list[Mark]:
    """What is shown on every chart's axis of steps; of very many of a kind, some."""
    marks = []
    for kind in _MARKED:
        found = [one for one in happened if one.kind == kind and one.step is not None]
        shown = found[:: -(-len(found) // _MOST_MARKS) or 1]
        marks += [Mark(one.step or 0.0, kind, one.lost_steps, _text(one)) for one in shown]
    return marks


def loss_chart(run: Run, marks: Sequence[Mark], detail: Detail) -> Chart:
    """Training loss, and the evaluations' where there are any. Logarithmic where it falls to less than a 20th."""
    evaluations = _evaluated(run, "loss")
    buckets = Buckets.of(run.num_steps, detail.points)
    series = _curve("training", run.steps["step"], run.steps["loss"], buckets)
    if evaluations is not None:
        series.append(Series("evaluation", *evaluations, "dots", "second"))
    known = np.concatenate([s.y[np.isfinite(s.y)] for s in series if s.style in ("line", "dots")])
    wide = len(known) > 0 and known.min() > 0 and known.max() / known.min() > 20
    unknown = int((~np.isfinite(run.steps["loss"])).sum())
    notes = [f"In {fmt.plural(unknown, 'step')} the loss was not a finite number."] if unknown else []
    top = None
    if not wide:
        top, cut = _cut(_drawn(series), "values go", least=float(known.max(initial=0)))
        notes.append(cut)
    return Chart(
        "Loss",
        "mean over the samples of a step" + (", logarithmic" if wide else ""),
        _summary("Training loss", run.steps["step"], run.steps["loss"]),
        series,
        marks,
        "log" if wide else "linear",
        top,
        " ".join(notes),
        buckets.size,
        span=_span(run),
        drawn_points=detail.drawn,
    )


def metric_names(run: Run) -> list[str]:
    """The metrics of training and evaluation, in the order in which they came."""
    names = dict.fromkeys(run.metrics)
    names |= {name: None for event in run.evaluations for name in event.get("metrics") or {}}
    return list(names)


def metric_charts(run: Run, marks: Sequence[Mark], detail: Detail) -> list[Chart]:
    """One chart for every metric, up to `MOST_METRICS`, and for the learning rate where it changes."""
    charts = [_metric_chart(run, name, marks, detail) for name in metric_names(run)[:MOST_METRICS]]
    rate = run.steps["lr"]
    if len(np.unique(rate[np.isfinite(rate)])) > 1:
        summary = _summary("Learning rate", run.steps["step"], rate)
        buckets = Buckets.of(run.num_steps, detail.points)
        line = Series("learning rate", buckets.last(run.steps["step"]), buckets.last(rate))
        charts.append(_small(run, "Learning rate", summary, [line], marks, "zero", buckets.size, detail))
    return [chart for chart in charts if chart.series]


def _metric_chart(run: Run, name: str, marks: Sequence[Mark], detail: Detail) -> Chart:
    series, summary, size = [], name, 1
    values = run.metrics.get(name, np.zeros(0))
    known = np.flatnonzero(np.isfinite(values))  # a metric need not be there in every step
    if len(known):
        buckets = Buckets.of(len(known), detail.points)
        series += _curve("training", run.steps["step"][known], values[known], buckets)
        summary, size = _summary(f"Training {name}", run.steps["step"], values), buckets.size
    evaluations = _evaluated(run, name)
    if evaluations is not None:
        series.append(Series("evaluation", *evaluations, "dots", "second"))
        summary = _summary(f"Evaluation {name}", *evaluations)
    return _small(run, name, summary, series, marks, "linear", size, detail)


def _small(
    run: Run,
    title: str,
    summary: str,
    series: Sequence[Series],
    marks: Sequence[Mark],
    scale: Literal["linear", "zero"],
    steps_per_point: int,
    detail: Detail,
    unit: str = "",
) -> Chart:
    return Chart(
        title,
        unit,
        summary,
        series,
        marks,
        scale,
        steps_per_point=steps_per_point,
        explain_marks=False,
        span=_span(run),
        drawn_points=detail.drawn,
    )


def throughput_chart(run: Run, marks: Sequence[Mark], detail: Detail) -> Chart:
    """Samples a second over all ranks."""
    return rate_chart(run, run.steps["samples"], "Samples a second", "all ranks", marks, detail)


def rate_chart(
    run: Run, counted: Column, title: str, unit: str, marks: Sequence[Mark], detail: Detail, explain_marks: bool = True
) -> Chart:
    """What is counted in a step, a second: that of a bucket of steps over its seconds."""
    buckets = Buckets.of(run.num_steps, detail.points)
    sec = run.steps["sec"]
    steps = buckets.last(run.steps["step"])
    rate = divide(buckets.sum(counted), buckets.sum(sec))
    series = _spread(steps, divide(counted, np.nan_to_num(sec)), rate, buckets)
    line = smooth(rate, len(rate) // _SMOOTHED_OVER)
    series.append(Series("mean", steps, line))
    top, note = _cut(_drawn(series), "values go")
    return Chart(
        title,
        unit,
        _summary(title, steps, line),
        series,
        marks,
        "zero",
        top,
        note,
        buckets.size,
        explain_marks,
        _span(run),
        detail.drawn,
    )


def value_chart(run: Run, values: Column, title: str, unit: str, marks: Sequence[Mark], detail: Detail) -> Chart:
    """What is measured in a step, as it is; it need not be there in every step."""
    known = np.flatnonzero(np.isfinite(values))
    buckets = Buckets.of(len(known), detail.points)
    series = _curve("mean", run.steps["step"][known], values[known], buckets)
    summary = _summary(title, run.steps["step"], values)
    return _small(run, title, summary, series, marks, "linear", buckets.size, detail, unit)


def time_chart(run: Run, marks: Sequence[Mark], detail: Detail) -> Chart:
    """Milliseconds a step, stacked by part; a bar is the mean over its steps. Parts that take no time are left out."""
    buckets = Buckets.of(run.num_steps, detail.points // 2)
    steps = buckets.last(run.steps["step"])
    means = {part: np.nan_to_num(buckets.mean(sec)) * 1e3 for part, sec in part_seconds(run).items()}
    means = {part: values for part, values in means.items() if values.any()} or means
    series = [Series(part_name(part), steps, values, "bars", part_css(part)) for part, values in means.items()]
    series.append(Series("slowest step", steps, buckets.high(run.steps["sec"]) * 1e3, "peak", "rest"))
    sums = np.sum(list(means.values()), axis=0)
    top = _time_top(sums, Buckets.of(run.num_steps, MOST_BARS).high(run.steps["sec"]) * 1e3)
    return Chart(
        "Time a step",
        "ms" if run.num_steps <= MOST_BARS else "ms; a bar for several steps is their mean",
        "Stacked milliseconds a step: "
        + ", ".join(f"{part_name(part)} {fmt.number(values.mean(), 3)}" for part, values in means.items()),
        series,
        marks,
        "zero",
        top,
        f"{_beyond(sums, top, 'bars go', 'ms')} {_slowest(run)}".strip(),
        buckets.size,
    )


def _time_top(sums: Array, peaks: Array) -> float:
    """The axis holds the bars, and of the slowest steps above them what would not make the bars too small to read."""
    top = _cut(sums, "bars go")[0] or float(sums.max())
    known = peaks[np.isfinite(peaks)]
    return max(top, min(1.1 * float(np.quantile(known, 0.9)), 3 * float(np.median(sums)))) if len(known) else top


def _slowest(run: Run) -> str:
    sec = run.steps["sec"]
    if not np.isfinite(sec).any():
        return ""
    row = int(np.nanargmax(sec))
    return f"The slowest step, {fmt.count(run.steps['step'][row])}, took {fmt.seconds(float(sec[row]))}."


def _span(run: Run) -> tuple[float, float] | None:
    return (float(run.steps["step"][0]), float(run.steps["step"][-1])) if run.num_steps else None


def _curve(name: str, steps: Column, values: Column, buckets: Buckets) -> list[Series]:
    """A smoothed line over the raw values; over their extremes, where several steps share a point."""
    x, mean = buckets.last(steps), buckets.mean(values)
    return [*_spread(x, values, mean, buckets), Series(name, x, smooth(mean, len(x) // _SMOOTHED_OVER))]


def _spread(x: Array, values: Array, means: Array, buckets: Buckets) -> list[Series]:
    if buckets.size > 1:
        return [Series("range", x, buckets.low(values), "band", top=buckets.high(values))]
    return [Series("each step", x, means, "faint")] if len(x) // _SMOOTHED_OVER > 1 else []


def _drawn(series: Sequence[Series]) -> Array:
    values = np.concatenate([s.y if s.top is None else s.top for s in series])
    return np.asarray(values[np.isfinite(values)])


def _evaluated(run: Run, name: str) -> tuple[Array, Array] | None:
    points = [(event.get("step"), _value(event, name)) for event in run.evaluations]
    known = [(step, value) for step, value in points if isinstance(step, int) and isinstance(value, int | float)]
    if not known:
        return None
    steps, values = zip(*known, strict=True)
    return np.array(steps, np.float64), np.array(values, np.float64)


def _value(event: dict[str, Any], name: str) -> Any:
    return event.get("loss") if name == "loss" else (event.get("metrics") or {}).get(name)


def _text(one: Incident) -> str:
    text = f"{one.title}: {one.detail}" if one.detail else one.title
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


def _cut(values: Array, what: str, unit: str = "", least: float = 0.0) -> tuple[float | None, str]:
    """An upper end for the axis, and a note, where a few values (a first step, say) would dwarf all the others."""
    if not len(values):
        return None, ""
    usual, largest = max(least, 1.3 * float(np.quantile(values, 0.97))), float(values.max())
    if largest < 2 * usual or usual <= 0:
        return None, ""
    return usual, _beyond(values, usual, what, unit)


def _beyond(values: Array, top: float, what: str, unit: str = "") -> str:
    beyond = int((values > top).sum())
    if not beyond:
        return ""
    what = what.replace("s go", " goes") if beyond == 1 else what
    return f"{beyond:,} {what} beyond the scale, up to {fmt.number(float(values.max()), 3)} {unit}".rstrip() + "."


def _summary(name: str, steps: Array, values: Array) -> str:
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return f"{name}: nothing known."
    first, last, low, high = known[0], known[-1], values[known].min(), values[known].max()
    return (
        f"{name} from {fmt.number(values[first])} at step {fmt.count(steps[first])} to {fmt.number(values[last])} "
        f"at step {fmt.count(steps[last])}; lowest {fmt.number(low)}, highest {fmt.number(high)}."
    )
