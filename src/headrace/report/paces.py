"""The ranks side by side: how long each takes for its own part of a step, without what it waits for the others.

All ranks take the same time for a whole step, so only this tells a slow one. With many ranks the slowest are named, and
the others are the span between the fastest and the slowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from headrace.report import formatting as fmt
from headrace.report.beside import Paces
from headrace.report.charts import Chart, Mark, Series
from headrace.report.figures import render
from headrace.report.series import Buckets

_MOST_RANKS = 16
_POINTS = 1000


def lead(paces: Paces) -> str:
    """What stands above it, in a sentence."""
    p50 = np.median(paces.p50_sec, axis=0)
    fastest, slowest = int(p50.argmin()), int(p50.argmax())
    return escape(
        f"Without waiting for each other, rank {fastest} takes {fmt.seconds(float(p50[fastest]))} for a step, and rank "
        f"{slowest} {fmt.seconds(float(p50[slowest]))}."
    )


def body(paces: Paces, marks: Sequence[Mark]) -> str:
    """What the section shows: the ranks as rows, and their course over the steps."""
    p50, p90 = np.median(paces.p50_sec, axis=0), np.median(paces.p90_sec, axis=0)
    shown = np.sort(np.argsort(-p50, kind="stable")[:_MOST_RANKS])
    rows = "".join(_row(int(rank), float(p50[rank]), float(p90[rank]), p50) for rank in shown)
    hidden = paces.num_ranks - len(shown)
    note = f"The {len(shown)} slowest of {paces.num_ranks:,} ranks. " if hidden else ""
    note += "The last column is the rank's median over that of the ranks."
    head = "<th>rank</th><th></th><th>median</th><th>90 % below</th><th>to usual</th>"
    chart = course(paces, marks)
    return (
        '<div class="card"><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        f'<p class="note">{note}</p></div>{chart}'
    )


def course(paces: Paces, marks: Sequence[Mark]) -> str:
    """Their pace over the steps, where there is more than one reading."""
    slowest = int(np.median(paces.p50_sec, axis=0).argmax())
    return render(_chart(paces, slowest, marks)) if len(paces.steps) > 1 else ""


def _row(rank: int, p50: float, p90: float, all_p50: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    usual, largest = float(np.median(all_p50)), float(all_p50.max())
    width = 100 * p50 / largest if largest else 0.0
    bar = f'<i class="meter wide"><span style="width:{width:.0f}%"></span></i>'
    times = f"{p50 / usual:.2f}" if usual else fmt.UNKNOWN
    css = ' class="strong"' if usual and p50 > 1.2 * usual else ""
    cells = "".join(f"<td>{cell}</td>" for cell in (fmt.seconds(p50), fmt.seconds(p90), times))
    return f'<tr{css}><th>{rank}</th><td class="bar">{bar}</td>{cells}</tr>'


def _chart(paces: Paces, slowest: int, marks: Sequence[Mark]) -> Chart:
    buckets = Buckets.of(len(paces.steps), _POINTS)
    steps = buckets.last(paces.steps)
    low, high = buckets.low(paces.p50_sec.min(axis=1)) * 1e3, buckets.high(paces.p50_sec.max(axis=1)) * 1e3
    usual = buckets.mean(np.median(paces.p50_sec, axis=1)) * 1e3
    last = float(steps[-1])
    return Chart(
        "A rank's own part of a step",
        "ms, median of the steps before",
        f"At step {fmt.count(last)} the fastest rank takes {fmt.number(float(low[-1]), 3)} ms, the median rank "
        f"{fmt.number(float(usual[-1]), 3)} ms, the slowest {fmt.number(float(high[-1]), 3)} ms.",
        [
            Series("fastest to slowest", steps, low, "band", top=high),
            Series("median rank", steps, usual),
            Series(f"rank {slowest}", steps, buckets.mean(paces.p50_sec[:, slowest]) * 1e3, css="second"),
        ],
        marks,
        "zero",
        explain_marks=False,
    )
