"""write_page: one file, complete without network or JavaScript, safe whatever the run holds."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from browser import CHROMIUM, chromium
from run_files import RunFile, long_run, write_run

from headrace.errors import StorageError
from headrace.report import write_page
from waiting import wait_for

VOID = {"meta", "link", "line", "rect", "path", "br"}


class Tree(HTMLParser):
    """Fails on tags that do not match; gathers tags and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts).replace("\xa0", " ")


def page_of(folder):
    return write_page(folder).read_text("utf-8")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "digits")


def test_lies_beside_the_events_or_where_it_is_told_to(run_folder, tmp_path):
    assert write_page(run_folder) == run_folder / "report.html"
    assert write_page(run_folder / "events.jsonl", tmp_path / "x.html") == tmp_path / "x.html"
    assert (tmp_path / "x.html").read_text("utf-8") == (run_folder / "report.html").read_text("utf-8")


def test_says_verdict_split_stages_history_and_facts(run_folder):
    tree = Tree(page_of(run_folder))
    for words in (
        "Input-bound",
        "22 % of the time goes into waiting for data.",
        "slowest stage is transform",
        "1 restart, 30 steps done again",
        "wait for input",
        "from checkpoints/step-00000300, 30 steps done again",
        "12.4 MB in 110 ms",
        "settings.learning_rate",
        "NVIDIA H200",
        "128.0 GiB",
        "2.13.0",
        "finished",
    ):
        assert words in tree.text


def test_every_chart_has_words_for_those_who_do_not_see_it(run_folder):
    page = page_of(run_folder)
    tree = Tree(page)
    charts = [tag for tag, attributes in tree.tags if tag == "svg"]
    assert len(charts) == 5
    assert all(a.get("role") == "img" for tag, a in tree.tags if tag == "svg")
    assert len(re.findall(r"<title>[^<]+</title><desc>[^<]+</desc>", page)) == len(charts)
    assert page.count("<summary>As a table</summary>") == len(charts) + 1  # and the feed's
    assert "Training loss from" in page


def test_nothing_is_fetched(run_folder):
    page = page_of(run_folder)
    for name in ("uPlot.iife.min.js", "uPlot.min.css"):
        page = page.replace(files("headrace.report").joinpath("vendor/uplot", name).read_text("utf-8"), "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    assert "default-src 'none'" in page


def test_secrets_of_the_configuration_are_not_shown(tmp_path):
    secret = "d0nt-t3ll-any1"
    RunFile(tmp_path).start(config={"settings": {"api_key": secret, "data": f"https://a:{secret}@host/x?sig={secret}"}})
    page = page_of(tmp_path)
    assert secret not in page
    assert "(hidden)" in page
    assert "https://host/x?..." in page


def test_what_the_run_holds_is_text_not_markup(tmp_path):
    """Names and values of a run may come from anywhere: none of them becomes a tag."""
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    folder = tmp_path / "<b>run"
    file = RunFile(folder)
    file.start(config={evil: evil}, versions={evil: [evil]}, machine={"x": {evil: evil}}, mesh=evil, resumed_from=evil)
    for step in range(1, 20):
        file.clock.now += 0.1
        file.write(
            "step",
            step=step,
            epoch=0,
            loss=1.0,
            lr=0.1,
            samples=4,
            metrics={evil: 0.5 + step},
            sec=0.1,
            wait_sec=0.05,
            copy_sec=0,
            compute_sec=0.05,
            communication_sec=0,
            checkpoint_sec=0,
            rest_sec=0,
        )
    file.write("checkpoint", step=5, path=evil, sec=0.1, bytes=5)
    file.write("evaluate", step=5, epoch=0, loss=1.0, metrics={evil: 0.5}, samples=5, sec=0.1)
    file.feed(19, {evil: 3.0}, 100)
    file.write("stop", step=19, reason=evil)
    file.write("error", rank=0, step=19, type=evil, message=evil)
    page = page_of(folder)
    tree = Tree(page)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<b>" not in page
    assert not {tag for tag, _ in tree.tags} & {"img", "b"}
    assert [tag for tag, _ in tree.tags].count("script") == page.count('class="values"') + 3 + page.count('id="shared"')
    assert evil in "".join(tree.texts)


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.start(),
        lambda file: file.write("step", step=1),
        lambda file: file.write("error", rank=1, step=None, type="ValueError", message="no"),
        lambda file: file.write("evaluate", step=1, loss=None),
        lambda file: [file.step(step, loss=None, wait=0.1) for step in range(1, 4)],
        lambda file: [file.step(step, loss=0.0, batch=0, compute=0.0) for step in range(1, 20)],
        lambda file: [file.write("step", step=step, loss=5.0, sec=0.1) for step in range(1, 20)],
        lambda file: [file.step(step, loss=1e30 * step, compute=1e-9) for step in range(1, 2000)],
    ],
)
def test_runs_that_hold_little_still_have_a_page(tmp_path, write):
    file = RunFile(tmp_path)
    write(file)
    page = re.sub(r"<script>.*?</script>", "", page_of(tmp_path), flags=re.DOTALL)
    Tree(page)
    assert not re.search(r"[\s\">:,](nan|inf|NaN|Infinity)[\s\"<,]", page)


def test_failed_runs_say_so_at_the_top(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    for step in range(1, 10):
        file.step(step, loss=1.0, compute=0.1)
    file.write("error", rank=1, step=9, type="ValueError", message="shapes differ")
    text = Tree(page_of(tmp_path)).text
    assert "failed" in text
    assert "It failed at step 9 on rank 1: ValueError: shapes differ" in text
    file.write("error", rank=0, step=None, type="TrainingError", message="it was killed")
    assert "It failed on rank 0: TrainingError: it was killed" in Tree(page_of(tmp_path)).text


def values_of(page):
    """What the page's script has of every chart."""
    return [json.loads(text) for text in re.findall(r'class="values">(.*?)</script>', page)]


def test_long_runs_stay_small_and_keep_extremes(tmp_path):
    """One step in 50,000 had a loss of 1,000, another took 30 s: both are still there. A million steps make the same
    size, since a chart has 2,000 points at most."""
    page = page_of(long_run(tmp_path, 50_000))
    assert len(page) < 700_000
    assert "highest 1,000" in page
    assert "beyond the scale" in page
    assert "The slowest step, 16,666, took 30.0 s." in page
    charts = values_of(page)
    assert all(len(steps) <= 2000 for chart in charts for steps in chart["steps"])
    columns = {
        column["name"]: column["y"] for chart in charts[:2] for one in chart["series"] for column in one["columns"]
    }
    assert max(columns["highest"]) == 1000
    assert max(columns["slowest step"]) == pytest.approx(30_000, rel=1e-3)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """The page of a run with seventy metrics, in which hundreds of things happened."""
    file = RunFile(tmp_path_factory.mktemp("crowded"))
    file.start()
    metrics = {f"metric {k}": 0.0 for k in range(70)}
    file.write_many(
        {"event": "step", "step": step, "loss": 1 / step, "sec": 0.1, "metrics": dict.fromkeys(metrics, step**0.5 / 7)}
        for step in range(1, 1500)
    )
    text = "the loss is far above its mean, " * 9
    for kind in ("guard", "alarm", "loader_restart", "checkpoint"):
        file.write_many(
            {"event": kind, "step": step, "detail": text, "message": text, "reason": text} for step in range(1, 1500, 7)
        )
    return write_page(file.path)


def test_many_metrics_are_drawn_coarser_and_too_many_are_told(crowded):
    """Whatever a run measures, its page stays below 3 MB."""
    page = crowded.read_text("utf-8")
    assert len(page) < 3_000_000
    assert page.count("<svg") == 62
    assert "10 more metrics: in the run's events.jsonl." in page


def test_a_page_that_cannot_be_written_is_one_line(run_folder, tmp_path):
    with pytest.raises(StorageError, match=r"cannot write the report to .*: No such file or directory"):
        write_page(run_folder, tmp_path / "no" / "x.html")


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


def press(browser, *keys):
    for key in keys:
        browser.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        browser.call("Input.dispatchKeyEvent", type="keyUp", key=key)


def tip(browser):
    """The words beside the pointer, if there are any; a list, since only one chart may speak."""
    return browser.evaluate("[...document.querySelectorAll('.tip:not([hidden])')].map(tip => tip.innerText)")


def steps_in_view(browser):
    """First and last step on the axis of every chart."""
    views = browser.evaluate("[...document.querySelectorAll('figure')].map(figure => figure.dataset.steps)")
    return [[float(step) for step in view.split()] for view in views]


@needs_chromium
def test_in_chromium_no_error_no_request_and_nothing_scrolls_sideways(run_folder, browser):
    page = write_page(run_folder)
    for width, scheme in ((1200, "light"), (1200, "dark"), (390, "dark")):
        browser.show(width, 800, scheme, mobile=width < 500)
        browser.open(page)
        assert browser.requests() == [page.resolve().as_uri()]
        assert browser.complaints() == []
        assert browser.evaluate("document.documentElement.scrollWidth") == width, "it scrolls sideways"
        assert browser.evaluate("document.querySelectorAll('figure.drawn canvas').length") == 5
        assert browser.evaluate("document.querySelectorAll('svg')[1].checkVisibility()") is False
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    names = [(node["role"]["value"], node["name"]["value"]) for node in nodes if "name" in node and not node["ignored"]]
    assert ("button", "Zoom in: Loss") in names
    assert ("group", "Loss, mean over the samples of a step, logarithmic") in names
    assert [role for role, name in names if role in ("button", "image") and not name] == []
    assert any(role == "image" and name.startswith("Training loss from") for role, name in names)


@needs_chromium
def test_in_chromium_the_largest_page_is_drawn(crowded, browser):
    browser.show(1200, 800)
    browser.open(crowded)
    assert browser.evaluate("document.querySelectorAll('figure.drawn').length") == 62
    assert browser.complaints() == []


@needs_chromium
def test_in_chromium_values_and_zoom_by_mouse_and_by_keys(run_folder, browser):
    browser.show(1200, 800)
    browser.open(write_page(run_folder))
    whole = steps_in_view(browser)
    assert whole == [[0, 600], *[[1, 600]] * 4]
    browser.evaluate("document.querySelector('.u-over').scrollIntoView({block: 'center'})")
    left, top, width, height = browser.evaluate(
        "(r => [r.x, r.y, r.width, r.height])(document.querySelector('.u-over').getBoundingClientRect())"
    )

    def mouse(kind, share, **more):
        browser.call("Input.dispatchMouseEvent", type=kind, x=left + width * share, y=top + height / 2, **more)

    mouse("mouseMoved", 0.505)
    (said,) = tip(browser)
    assert "wait for input" in said
    assert re.search(r"after\s+\d+ s\s", said), "how long after the start"
    assert "restart: from checkpoints/step-00000300, 30 steps done again" in said
    for kind, share in (("mousePressed", 0.25), ("mouseMoved", 0.5), ("mouseReleased", 0.5)):
        mouse(kind, share, button="left", buttons=1, clickCount=1)
    zoomed = steps_in_view(browser)
    assert all(view == zoomed[0] for view in zoomed), "charts zoom together"
    assert zoomed[0] == pytest.approx([150, 300], abs=2)
    browser.evaluate("document.querySelector('button[aria-label=\"Show all steps: Loss\"]').click()")
    assert steps_in_view(browser) == whole

    browser.evaluate("document.querySelectorAll('.plot')[1].focus()")
    press(browser, "End")
    assert "step600" in re.sub(r"\s", "", *tip(browser))
    press(browser, "+", "+", "ArrowLeft")
    assert "step599" in re.sub(r"\s", "", *tip(browser))
    assert steps_in_view(browser)[0] == pytest.approx([450, 600], abs=2)
    press(browser, "Home")  # the view goes along
    assert re.sub(r"\s", "", *tip(browser)).startswith("step1after")
    assert steps_in_view(browser)[0] == pytest.approx([1, 150], abs=2)
    browser.evaluate("document.querySelector('.plot').focus()")
    press(browser, "End", "+", "ArrowLeft")  # bars, of which only those in view are summed up
    assert steps_in_view(browser)[0] == pytest.approx([525, 600], abs=2)
    press(browser, "Home")
    assert re.sub(r"\s", "", *tip(browser)).startswith("step1after")
    assert steps_in_view(browser)[0] == pytest.approx([0, 75], abs=2)
    press(browser, "Escape")
    assert tip(browser) == []
    press(browser, "0")
    assert steps_in_view(browser) == whole
    assert browser.complaints() == []


@needs_chromium
def test_in_chromium_charts_follow_the_theme_and_are_there_in_print_and_without_javascript(run_folder, browser):
    browser.show(1200, 800)
    browser.open(write_page(run_folder))
    browser.call("Emulation.setEmulatedMedia", media="print")
    shown = (
        "['svg', 'canvas', 'button'].map(name => document.querySelector(`figure ${name}`)?.checkVisibility() ?? false)"
    )
    assert browser.evaluate(shown) == [True, False, False]
    browser.call("Emulation.setEmulatedMedia", media="")
    assert browser.evaluate(shown) == [False, True, True]
    canvas = "document.querySelector('canvas').toDataURL()"
    light = browser.evaluate(canvas)
    browser.show(1200, 800, "dark")
    wait_for(lambda: browser.evaluate(canvas) != light, "the colours to follow the system while the page is open")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(write_page(run_folder))
        assert browser.evaluate(shown) == [True, False, False]
        assert browser.evaluate("document.querySelector('#keys').checkVisibility()") is False
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_a_run_that_was_stopped_and_goes_on_is_not_stopped(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    file.write("stop", step=1, reason="asked")
    assert '<span class="state open">stopped<' in write_page(tmp_path).read_text()
    file.clock.now += 10
    file.start(step=1, attempt=1)
    assert '<span class="state open">not finished<' in write_page(tmp_path).read_text()


def test_what_replicas_send_and_the_loss_scale_are_charts(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    for step in (1, 2, 3):
        file.clock.now += 1
        file.write(
            "step",
            step=step,
            epoch=0,
            loss=1.0,
            samples=4,
            sec=1.0,
            sent_bytes=1000,
            saved_bytes=3000,
            loss_scale=512.0,
        )
    text = write_page(tmp_path).read_text()
    assert all(title in text for title in ("Sent, bytes a second", "Saved, bytes a second", "Loss scale"))
