"""Whatever else the steps of a run measure has a chart: what is counted a second, the rest as it is."""

from dataclasses import replace

import numpy as np
import pytest
from run_files import write_run

from headrace.report import read_run
from headrace.report.page import page
from headrace.report.plots import Detail
from headrace.report.quantities import quantity_charts, quantity_names


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "digits", num_steps=100, crash_at=None))


def test_a_run_that_measures_nothing_else_has_none(run):
    assert quantity_names(run) == []


def test_what_is_counted_is_a_rate_and_what_is_not_a_value(run):
    sparse = np.where(np.arange(100) % 10 == 0, 0.4, np.nan)
    columns = {"tokens": 1000 * run.steps["sec"], "mfu": sparse, "host_cpu": np.full(100, np.nan)}
    measured = replace(run, steps={**run.steps, **columns})
    assert sorted(quantity_names(measured)) == ["mfu", "tokens"]  # of the host's CPU nothing is known
    mfu, tokens = sorted(quantity_charts(measured, (), Detail.of(4)), key=lambda chart: chart.title)
    assert tokens.title == "Tokens a second"
    assert tokens.series[-1].y == pytest.approx(1000)
    assert (mfu.title, mfu.unit) == ("MFU", "share of the peak rate")
    assert mfu.series[-1].x.tolist() == list(range(1, 101, 10))
    text = page(measured)
    assert "Tokens a second from 1,000" in text
    assert "MFU from 0.4" in text
