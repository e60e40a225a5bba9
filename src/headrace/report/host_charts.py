"""What the machine was busy with, along the run's steps.

Looks are taken every few seconds, whatever step that is; a look stands at the step that was done last. So the charts
have the axis of all others, and a slow stretch of the run can be held against the machine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.report import formatting as fmt
from headrace.report.charts import Chart, Mark, Series
from headrace.report.runlog import Event, Run
from headrace.report.series import Array, Buckets

_LEAST_LOOKS = 3
_POINTS = 500
_LEAST_SHOWN = 0.01  # of any unit below: a network that carries some bytes a second has no course worth looking at
_SHOWN: tuple[tuple[str, str, float, tuple[tuple[str, str], ...]], ...] = (
    ("Processors", "% of all busy", 100, (("cpu", "processors"),)),
    ("GPUs", "% of the time in which some kernel ran, mean", 100, (("gpu_running", "GPUs"),)),
    ("GPU power", "W each, mean", 1, (("gpu_power_watts", "GPUs"),)),
    ("GPU memory", "GB each, mean", 1e-9, (("gpu_memory_used_bytes", "GPUs"),)),
    ("Memory", "GB", 1e-9, (("memory_used_bytes", "in use"), ("process_bytes", "rank 0's process"))),
    ("Disks", "MB/s", 1e-6, (("disk_read_bytes_per_sec", "read"), ("disk_written_bytes_per_sec", "written"))),
    ("Network", "MB/s", 1e-6, (("network_received_bytes_per_sec", "received"), ("network_sent_bytes_per_sec", "sent"))),
)
_COLOURS = ("accent", "second")


def host_charts(run: Run, hosts: Sequence[Event], marks: Sequence[Mark]) -> list[Chart]:
    """A chart for each kind of quantity that the looks have; none where fewer than three looks fall on the steps."""
    times, steps = run.steps["time"], run.steps["step"]
    known = np.flatnonzero(np.isfinite(times))
    looks = [event for event in hosts if isinstance(event.get("time"), int | float)]
    if not len(known) or len(looks) < _LEAST_LOOKS:
        return []
    rows = np.searchsorted(times[known], [event["time"] for event in looks], side="right") - 1
    looks = [event for event, row in zip(looks, rows, strict=True) if row >= 0]
    at = steps[known][rows[rows >= 0]]
    # Several looks during one step, such as a long evaluation's, are one point.
    last = np.flatnonzero(np.append(np.diff(at) > 0, True)) if len(at) else np.zeros(0, np.intp)
    if len(last) < _LEAST_LOOKS:
        return []
    looks, at = [looks[row] for row in last], at[last]
    span = (float(steps[0]), float(steps[-1]))
    charts = (_chart(title, unit, factor, names, looks, at, marks, span) for title, unit, factor, names in _SHOWN)
    return [chart for chart in charts if chart is not None]


def _chart(
    title: str,
    unit: str,
    factor: float,
    names: Sequence[tuple[str, str]],
    looks: Sequence[Event],
    at: Array,
    marks: Sequence[Mark],
    span: tuple[float, float],
) -> Chart | None:
    buckets = Buckets.of(len(at), _POINTS)
    series, said = [], []
    for (name, words), css in zip(names, _COLOURS, strict=False):
        values = np.array([_value(look.get(name)) for look in looks]) * factor
        if not np.isfinite(values).any():
            continue
        x = buckets.last(at)
        if buckets.size > 1:
            series.append(Series("range", x, buckets.low(values), "band", css, top=buckets.high(values)))
        series.append(Series(words, x, buckets.mean(values), css=css))
        mean, most = (fmt.number(float(value), 3) for value in (np.nanmean(values), np.nanmax(values)))
        said.append(f"{words} {mean}, at most {most}")
    if max((float(np.nanmax(one.y)) for one in series), default=0.0) < _LEAST_SHOWN:
        return None
    summary = f"{title} ({unit}), mean over the looks: {'; '.join(said)}."
    return Chart(title, unit, summary, series, marks, "zero", explain_marks=False, span=span)


def _value(value: Any) -> float:
    """A number; of a list, one a GPU, the mean."""
    found = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int | float)]
    return float(np.mean(found)) if found else np.nan
