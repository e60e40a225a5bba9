"""The feed as a flow: rates, ceilings, and which stage holds the others up."""

from __future__ import annotations

import pytest

from headrace.report.flow import ceiling, flow
from headrace.report.stages import Stage

READ = Stage("read", 1000, 10_000_000, busy_sec=1.0, wait_sec=9.0, threads=2, elapsed_sec=10.0)
VERIFY = Stage("verify", 1000, 10_000_000, busy_sec=3.0, wait_sec=0.0, threads=2, elapsed_sec=10.0)
TRANSFORM = Stage("transform", 1000, 0, busy_sec=38.0, wait_sec=2.0, threads=4, elapsed_sec=10.0)
UNKNOWN = Stage("<hand-off>", 1000, 0, busy_sec=0.0, wait_sec=0.0, threads=None, elapsed_sec=None)


def test_a_ceiling_is_what_all_threads_make_in_a_second_of_work():
    stages = [READ, VERIFY, TRANSFORM, UNKNOWN]
    assert ceiling(TRANSFORM, stages) == pytest.approx(4 * 1000 / 38)
    assert ceiling(READ, stages) == ceiling(VERIFY, stages) == pytest.approx(2 * 1000 / 4), "they share their threads"
    assert ceiling(UNKNOWN, stages) is None


def test_the_stage_that_holds_the_others_up_is_marked_and_the_trainer_stands_at_the_end():
    html = flow([READ, VERIFY, TRANSFORM], wait_share=0.2)
    assert html.count("<li") == 4
    assert html.count("holds the others up") == 1
    assert html.index("transform") < html.index("holds the others up") < html.index("trainer")
    assert "up to 105.3/s" in html
    assert "takes up to 125.0/s" in html  # 100 a second, with a fifth of the time spent waiting
    assert "1.00 MB/s" in html


@pytest.mark.parametrize("wait_share", [None, 1.0])
def test_what_is_not_known_is_left_out(wait_share):
    html = flow([UNKNOWN], wait_share)
    assert "up to" not in html
    assert "trainer" not in html
    assert "&lt;hand-off&gt;" in html
