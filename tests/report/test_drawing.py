"""The SVG of a chart has fewer points than the chart, and still reaches every extreme."""

import re

import numpy as np
import pytest

from headrace.report.charts import Axes, Chart, Series
from headrace.report.drawing import MOST_BARS, svg

STEPS = np.arange(1.0, 5001.0)
SPIKE = np.where(STEPS == 3456, 100.0, 1.0)


def drawn(series, css, **options):
    chart = Chart("Loss", "", "It fell.", series, **options)
    return re.findall(rf'class="{css}[^"]*" d="([^"]*)"', svg(chart, Axes.of(chart)))


def heights(path):
    """Where the points of a path are, 0 at the top to 400 at the bottom."""
    return [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.-]+)", path)]


@pytest.mark.parametrize(
    "series",
    [
        Series("each step", STEPS, SPIKE, "faint"),
        Series("range", STEPS, np.minimum(SPIKE, 1), "band", top=SPIKE),
        Series("slowest", STEPS, SPIKE, "peak"),
    ],
    ids=lambda series: series.style,
)
def test_one_step_in_thousands_is_still_drawn_at_its_height(series):
    [path] = drawn([series], series.style, scale="zero", drawn_points=200)
    assert len(heights(path)) <= 401
    assert min(heights(path)) == pytest.approx(400 * (1 - 1 / 1.04), abs=0.1)


def test_bars_stand_on_each_other_and_are_means_of_neighbours():
    lower, upper = (
        Series(name, STEPS, value * SPIKE**0, "bars", name) for name, value in (("wait", 1.0), ("rest", 3.0))
    )
    below, above = (drawn([lower, upper], f"bars {css}", scale="zero")[0] for css in ("wait", "rest"))
    assert below.count("M") == above.count("M") <= MOST_BARS
    top_of = {re.search(r"M[\d.]+ ([\d.]+)H[\d.]+V([\d.]+)", path).groups() for path in (below, above)}
    (bottom, middle), (same, top) = sorted(top_of, reverse=True)
    assert middle == same
    assert (400 - float(middle)) * 4 == pytest.approx(400 - float(top), abs=0.5)
    assert float(bottom) == 400


def test_a_line_is_broken_where_nothing_is_known():
    values = np.where((STEPS > 1000) & (STEPS < 2000), np.nan, 1.0)
    [path] = drawn([Series("loss", STEPS, values)], "line")
    assert path.count("M") == 2
