"""What a run's charts show: loss, metrics, throughput and the time split, in a screen's worth of points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.report import formatting as fmt
from headrace.report.charts import Chart, Mark, Series
from headrace.report.runlog import PARTS, Column, Run
from headrace.report.series import Array, Buckets, divide, smooth

_POINTS = 400
_BARS = 120
_SMOOTHED_OVER = 25  # a line shows the mean over a 25th of the run, which keeps its turns and loses its noise
_MOST_MARKS = 100


def loss_chart(run: Run) -> Chart:
    """Training loss, and the evaluations' where there are any. Logarithmic where it falls to less than a 20th."""
    evaluations = _evaluated(run, "loss")
    series = _curve("training", run.steps["step"], run.steps["loss"])
    if evaluations is not None:
        series.append(Series("evaluation", *evaluations, "dots", "second"))
    known = np.concatenate([s.y[np.isfinite(s.y)] for s in series if s.style in ("line", "dots")])
    wide = len(known) > 0 and known.min() > 0 and known.max() / known.min() > 20
    unknown = int((~np.isfinite(run.steps["loss"])).sum())
    notes = [f"In {fmt.plural(unknown, 'step')} the loss was not a finite number."] if unknown else []
    top = None
    if not wide:
        drawn = np.concatenate([s.y if s.top is None else s.top for s in series])
        top, cut = _cut(drawn[np.isfinite(drawn)], "values go", least=float(known.max(initial=0)))
        notes.append(cut)
    return Chart(
        "Loss",
        "mean over the samples of a step" + (", logarithmic" if wide else ""),
        _summary("Training loss", run.steps["step"], run.steps["loss"]),
        series,
        _marks(run),
        "log" if wide else "linear",
        top,
        " ".join(notes),
    )


def metric_charts(run: Run) -> list[Chart]:
    """One chart for every metric of training or evaluation, and for the learning rate where it changes."""
    names = dict.fromkeys(run.metrics)
    names |= {name: None for event in run.evaluations for name in event.get("metrics") or {}}
    charts = []
    for name in names:
        series, summary = [], name
        values = run.metrics.get(name, np.zeros(0))
        known = np.flatnonzero(np.isfinite(values))  # a metric need not be there in every step
        if len(known):
            series += _curve("training", run.steps["step"][known], values[known])
            summary = _summary(f"Training {name}", run.steps["step"], values)
        evaluations = _evaluated(run, name)
        if evaluations is not None:
            series.append(Series("evaluation", *evaluations, "dots", "second"))
            summary = _summary(f"Evaluation {name}", *evaluations)
        if series:
            charts.append(Chart(name, "", summary, series, _marks(run), explain_marks=False))
    rate = run.steps["lr"]
    if len(np.unique(rate[np.isfinite(rate)])) > 1:
        summary = _summary("Learning rate", run.steps["step"], rate)
        buckets = Buckets.of(run.num_steps, _POINTS)
        line = Series("learning rate", buckets.last(run.steps["step"]), buckets.last(rate))
        charts.append(Chart("Learning rate", "", summary, [line], _marks(run), "zero", explain_marks=False))
    return charts


def throughput_chart(run: Run) -> Chart:
    """Samples a second over all ranks: those of a bucket of steps over its seconds."""
    buckets = Buckets.of(run.num_steps, _POINTS)
    samples, sec = run.steps["samples"], run.steps["sec"]
    steps = buckets.last(run.steps["step"])
    rate = divide(buckets.sum(samples), buckets.sum(sec))
    series = _spread(steps, divide(samples, np.nan_to_num(sec)), rate, buckets)
    line = smooth(rate, len(rate) // _SMOOTHED_OVER)
    series.append(Series("samples/s", steps, line))
    drawn = np.concatenate([s.y if s.top is None else s.top for s in series])
    top, note = _cut(drawn[np.isfinite(drawn)], "values go")
    return Chart(
        "Samples a second",
        "all ranks",
        _summary("Samples a second", steps, line),
        series,
        _marks(run),
        "zero",
        top,
        note,
    )


def time_chart(run: Run, names: Mapping[str, str]) -> Chart:
    """Milliseconds a step, stacked by part; a bar is the mean over its steps."""
    buckets = Buckets.of(run.num_steps, _BARS)
    steps = buckets.last(run.steps["step"])
    means = {part: np.nan_to_num(buckets.mean(run.steps[f"{part}_sec"])) * 1e3 for part in PARTS}
    top, note = _cut(np.sum(list(means.values()), axis=0), "bars go", "ms")
    width = f"; a bar is the mean of {buckets.size:,} steps" if buckets.size > 1 else ""
    return Chart(
        "Time a step",
        f"ms{width}",
        "Stacked milliseconds a step: "
        + ", ".join(f"{names[part]} {fmt.number(means[part].mean(), 3)}" for part in PARTS),
        [Series(names[part], steps, values, "bars", part) for part, values in means.items()],
        _marks(run),
        "zero",
        top,
        note,
    )


def _curve(name: str, steps: Column, values: Column) -> list[Series]:
    """A smoothed line over the raw values; over their extremes, where several steps share a point."""
    buckets = Buckets.of(len(steps), _POINTS)
    x, mean = buckets.last(steps), buckets.mean(values)
    return [*_spread(x, values, mean, buckets), Series(name, x, smooth(mean, len(x) // _SMOOTHED_OVER))]


def _spread(x: Array, values: Array, means: Array, buckets: Buckets) -> list[Series]:
    if buckets.size > 1:
        return [Series("range", x, buckets.low(values), "band", top=buckets.high(values))]
    return [Series("each step", x, means, "faint")] if len(x) // _SMOOTHED_OVER > 1 else []


def _evaluated(run: Run, name: str) -> tuple[Array, Array] | None:
    points = [(event.get("step"), _value(event, name)) for event in run.evaluations]
    known = [(step, value) for step, value in points if isinstance(step, int) and isinstance(value, int | float)]
    if not known:
        return None
    steps, values = zip(*known, strict=True)
    return np.array(steps, np.float64), np.array(values, np.float64)


def _value(event: dict[str, Any], name: str) -> Any:
    return event.get("loss") if name == "loss" else (event.get("metrics") or {}).get(name)


def _marks(run: Run) -> list[Mark]:
    restarts = [Mark(attempt.step, "restart", attempt.lost_steps) for attempt in run.attempts[1:]]
    checkpoints = [Mark(float(event.get("step") or 0), "checkpoint") for event in run.checkpoints]
    every = -(-len(checkpoints) // _MOST_MARKS) or 1
    return [*restarts[-_MOST_MARKS:], *checkpoints[::every]]


def _cut(values: Array, what: str, unit: str = "", least: float = 0.0) -> tuple[float | None, str]:
    """An upper end for the axis, and a note, where a few values (a first step, say) would dwarf all the others."""
    if not len(values):
        return None, ""
    usual, largest = max(least, 1.3 * float(np.quantile(values, 0.97))), float(values.max())
    if largest < 2 * usual or usual <= 0:
        return None, ""
    beyond = int((values > usual).sum())
    what = what.replace("s go", " goes") if beyond == 1 else what
    return usual, f"{beyond} {what} beyond the scale, up to {fmt.number(largest, 3)} {unit}".rstrip() + "."


def _summary(name: str, steps: Array, values: Array) -> str:
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return f"{name}: nothing known."
    first, last, low, high = known[0], known[-1], values[known].min(), values[known].max()
    return (
        f"{name} from {fmt.number(values[first])} at step {fmt.count(steps[first])} to {fmt.number(values[last])} "
        f"at step {fmt.count(steps[last])}; lowest {fmt.number(low)}, highest {fmt.number(high)}."
    )
