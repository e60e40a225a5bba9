"""write_comparison: one page about several runs, complete without network or JavaScript."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from browser import CHROMIUM, chromium
from run_files import RunFile, write_run

from headrace.errors import StorageError
from headrace.report import compare, comparison_text, write_comparison


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    slow = write_run(folder / "slow", num_steps=300, crash_at=None)
    fast = write_run(folder / "fast", num_steps=200, crash_at=None, wait=0.002, copy=0.002, compute=0.031, rest=0.002)
    return compare(slow, fast)


def test_lies_in_the_last_run_or_where_it_is_told_to(compared, tmp_path):
    assert write_comparison(compared) == compared.runs[1].path.parent / "comparison.html"
    assert write_comparison(compared, tmp_path / "x.html") == tmp_path / "x.html"
    with pytest.raises(StorageError, match=r"cannot write the comparison to .*: No such file or directory"):
        write_comparison(compared, tmp_path / "no" / "x.html")


def test_page_and_text_have_the_sentence_results_split_and_changes(compared):
    page = write_comparison(compared).read_text("utf-8").replace("&nbsp;", " ")
    text = comparison_text(compared)
    for words in (
        "times as many samples/s as slow: it waits less for data (2",
        "total_steps 300 to 200",
        "loss at step 200",
        "wait for input",
        "evaluation accuracy",
    ):
        assert words in page
        assert words in text
    for words in ("Loss at equal steps", "Loss at equal time", "At step 200 the loss of slow is", "Input-bound: "):
        assert words in page


def test_nothing_is_fetched(compared):
    page = write_comparison(compared).read_text("utf-8")
    for name in ("uPlot.iife.min.js", "uPlot.min.css"):
        page = page.replace(files("headrace.report").joinpath("vendor/uplot", name).read_text("utf-8"), "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    assert "default-src 'none'" in page


def test_what_the_runs_hold_is_text_not_markup(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    for name, more in (("<b>one", ""), ("<i>two", "x")):
        file = RunFile(tmp_path / name)
        file.start(config={evil: evil + more}, mesh=evil + more)
        for step in range(1, 20):
            file.step(step, 1.0, wait=0.1)
        file.write("evaluate", step=5, epoch=0, loss=1.0, metrics={evil: 0.5}, samples=5, sec=0.1)
    page = write_comparison(compare(tmp_path / "<b>one", tmp_path / "<i>two")).read_text("utf-8")
    assert not re.search(r"<script>alert|<img|<b>one|<i>two", page)
    assert page.count("&lt;script&gt;alert(1)") >= 3


SHOWN = "[...document.querySelectorAll('figure')].map(f => f.dataset.steps.split(' ').map(Number))"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
def test_in_chromium_no_error_no_request_and_both_charts_of_the_loss(compared):
    page = write_comparison(compared)
    with chromium() as browser:
        for width, scheme in ((390, "dark"), (1200, "light")):
            browser.show(width, 800, scheme, mobile=width < 500)
            browser.open(page)
            assert browser.requests() == [page.resolve().as_uri()]
            assert browser.complaints() == []
            assert browser.evaluate("document.documentElement.scrollWidth") == width, "it scrolls sideways"
        assert browser.evaluate("[...document.querySelectorAll('figure h3')].map(h => h.textContent)") == [
            "Loss at equal steps",
            "Loss at equal time",
        ]
        # Each along its own axis: the zoom of one is not the other's.
        steps, sec = browser.evaluate(SHOWN)
        browser.evaluate("document.querySelectorAll('figure .plot')[1].focus()")
        for key in ("ArrowRight", "+"):
            browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert re.search(r"^s\s\d+\.\d+\s", browser.evaluate("document.querySelectorAll('.tip')[1].innerText"))
        zoomed_steps, zoomed_sec = browser.evaluate(SHOWN)
        assert zoomed_steps == steps
        assert zoomed_sec[1] - zoomed_sec[0] < 0.6 * (sec[1] - sec[0])
        assert browser.complaints() == []
