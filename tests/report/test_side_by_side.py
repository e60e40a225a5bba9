"""Ranks as bars of the parts of their steps, and compute as what it is made of."""

from __future__ import annotations

import pytest
from run_files import RunFile

from headrace.report import write_page
from headrace.report.ranks import RankTime
from headrace.report.runlog import PARTS
from headrace.report.side_by_side import body, lead


def rank_time(rank, compute, wait=0.0):
    """Of a step of 50 ms, in which it waits for the others when it has nothing of its own to do."""
    parts = dict.fromkeys(PARTS, 0.0) | {"compute": compute, "wait": wait, "communication": 0.05 - compute - wait}
    return RankTime(rank, 100, parts)


def test_the_rank_that_the_others_wait_for_is_named_with_what_it_does_longer():
    times = [rank_time(0, 0.020), rank_time(1, 0.020, wait=0.025), rank_time(2, 0.020)]
    assert lead(times) == (
        "The others wait for rank 1: of a step it does 45.0 ms itself, they 20.0 ms. It has more of: wait for input."
    )
    html = body(times)
    assert html.count('<tr class="strong"><th>1</th>') == 1
    assert 'class="wait" style="width:50.00%"' in html
    assert "<td>45.0 ms</td><td>50.0 ms</td>" in html


def test_equal_ranks_hold_nobody_up():
    times = [rank_time(0, 0.020), rank_time(1, 0.021)]
    assert lead(times) == "None holds up the others: of a step each does 20.0 ms to 21.0 ms itself."
    assert "strong" not in body(times)
    assert "checkpoint" not in body(times)  # which took no time on any


def test_of_many_ranks_those_that_do_most_themselves_are_shown():
    html = body([rank_time(rank, 0.020 + 0.0001 * rank) for rank in range(100)])
    assert html.count('class="split thin"') == 16
    assert "The 16 of 100 ranks that do most themselves." in html
    assert "<th>84</th>" in html
    assert "<th>83</th>" not in html


@pytest.mark.parametrize("known", [True, False])
def test_compute_is_shown_as_what_it_is_made_of_where_the_run_says_so(tmp_path, known):
    file = RunFile(tmp_path)
    file.start()
    parts = {"forward_sec": 0.01, "backward_sec": 0.02, "optimizer_sec": 0.01} if known else {}
    others = {f"{part}_sec": 0.0 for part in PARTS} | {"compute_sec": 0.04, "wait_sec": 0.06}
    for step in range(1, 20):
        file.write("step", step=step, loss=1.0, samples=4, sec=0.1, **others, **parts)
    page = write_page(tmp_path).read_text("utf-8")
    assert "compute</th><td>40 %</td>" in page
    assert ('class="swatch compute"' in page) is not known
    assert ("backward</th><td>20 %</td>" in page) is known
    assert ('"name":"backward"' in page) is known
    assert ('"name":"compute"' in page) is not known
