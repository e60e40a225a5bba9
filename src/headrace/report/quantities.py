"""Charts of what steps measure beside loss and time: tokens, FLOPs, MFU, the use of the host, whatever there is.

Which columns a run has is its own to say. What is counted in a step is shown a second; anything else as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.report.charts import Chart, Mark
from headrace.report.plots import Detail, rate_chart, value_chart
from headrace.report.runlog import Run

_SHOWN_ELSEWHERE = ("step", "epoch", "loss", "lr", "samples", "sec", "time")
_COUNTED = {
    "tokens": ("Tokens a second", "all ranks"),
    "weight": ("Weight a second", "tokens, where the loss gives their number"),
    "flops": ("FLOP/s", "all ranks"),
}
_NAMES = {"mfu": ("MFU", "share of the peak rate")}


def quantity_names(run: Run) -> list[str]:
    """The columns of the run's steps that have a chart here: where a number is known, and it is no part of the time."""
    names = (name for name in run.steps if name not in _SHOWN_ELSEWHERE and not name.endswith("_sec"))
    return [name for name in names if np.isfinite(run.steps[name]).any()]


def quantity_charts(run: Run, marks: Sequence[Mark], detail: Detail) -> list[Chart]:
    """One chart for each."""
    charts = []
    for name in quantity_names(run):
        if name in _COUNTED or name.endswith("_bytes"):
            title, unit = _COUNTED.get(name, (f"{_words(name.removesuffix('_bytes'))}, bytes a second", ""))
            charts.append(rate_chart(run, run.steps[name], title, unit, marks, detail, explain_marks=False))
        else:
            title, unit = _NAMES.get(name, (_words(name), ""))
            charts.append(value_chart(run, run.steps[name], title, unit, marks, detail))
    return charts


def _words(name: str) -> str:
    text = name.replace("_", " ")
    return text[:1].upper() + text[1:]
