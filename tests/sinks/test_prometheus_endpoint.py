"""The endpoint says what the run's events say: read by Prometheus's own parser, and by a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager

import pytest

import headrace as hr
from headrace.sinks import Sinks
from headrace.sinks.prometheus import DASHBOARD
from headrace.telemetry import EventWriter, read_events
from waiting import running, wait_for

pytest.importorskip("prometheus_client", reason="needs prometheus_client: pip install 'headrace[prometheus]'")

STAGES = {"read": {"items": 640, "bytes": 64_000, "busy_sec": 0.5, "wait_sec": 0.25, "threads": 2}}


@contextmanager
def endpoint(folder, sink=None):
    """A run under way, and where it can be scraped."""
    writer = EventWriter(folder / "events.jsonl")
    try:
        with Sinks([sink or hr.Prometheus(0)], folder, writer.write):
            (told,) = wait_for(lambda: told_of_sinks(folder), "the endpoint is open")
            yield writer, told["where"]
    finally:
        writer.close()


def told_of_sinks(folder):
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == "sink"]


def write_example(writer):
    """An event of every kind."""
    writer.write("start", step=0, total_steps=60, world_size=2, mesh="dp", versions={"torch": "2.13"}, machine={})
    for step in range(1, 11):
        parts = {"wait_sec": 0.01, "compute_sec": 0.03, "rest_sec": 0.01}
        writer.write("step", step=step, epoch=0, loss=1 / step, lr=0.1, samples=64, grad_norm=2.0, tokens=9, sec=0.05,
                     metrics={"accuracy": 0.5}, **parts)  # fmt: skip
    writer.write("feed", step=10, stages=STAGES, threads=2, dropped=3, padded=0, skipped=1)
    writer.write("evaluate", step=10, epoch=0, loss=0.125, metrics={"f1": 0.75}, samples=100, sec=2.0)
    writer.write("checkpoint", step=10, path="x", sec=0.5, bytes=1000)
    writer.write("guard", step=10, guard="spike", action="x", detail="x")
    writer.write("alarm", step=10, rule="au", message="x")
    writer.write("loader_restart", step=10, process="loader")


def scrape(url):
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(url, timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}


def test_what_is_scraped_is_what_was_written(tmp_path):
    with endpoint(tmp_path) as (writer, url):
        assert url.startswith("http://127.0.0.1:")
        assert str(scrape(url)["headrace_loss",]) == "nan"  # and not 0
        write_example(writer)
        found = wait_for(lambda: (seen := scrape(url)).get(("headrace_loader_restarts_total",)) and seen, "all arrives")
    assert found["headrace_step",] == 10
    assert found["headrace_planned_steps",] == 60
    assert found["headrace_loss",] == 0.1
    assert found["headrace_steps_total",] == found["headrace_step_seconds_count",] == 10
    assert found["headrace_samples_total",] == 640
    assert found["headrace_step_seconds_sum",] == pytest.approx(0.5)
    assert found["headrace_step_seconds_bucket", ("le", "0.05")] == 10
    assert found["headrace_step_seconds_bucket", ("le", "0.025")] == 0
    assert found["headrace_step_part_seconds_total", ("part", "compute")] == pytest.approx(0.3)
    assert found["headrace_metric", ("name", "accuracy")] == 0.5
    assert found["headrace_step_value", ("name", "tokens")] == 9
    assert found["headrace_evaluation", ("name", "f1")] == 0.75
    assert found["headrace_evaluation", ("name", "loss")] == 0.125
    assert found["headrace_feed_bytes_total", ("stage", "read")] == 64_000
    assert found["headrace_feed_lost_samples_total", ("how", "dropped")] == 3
    assert found["headrace_guard_findings_total", ("guard", "spike")] == 1
    assert found["headrace_alarms_total", ("rule", "au")] == 1
    assert found["headrace_checkpoint_bytes",] == 1000
    assert found["headrace_run_info", ("host", ""), ("mesh", "dp"), ("run", tmp_path.name), ("torch_version", "2.13")]


def test_meters_of_a_feed_that_begins_anew_are_added(tmp_path):
    with endpoint(tmp_path) as (writer, url):
        for items in (5, 8, 2):
            writer.write("feed", step=1, stages={"read": {"items": items}})
        writer.write("loader_restart", step=1)
        found = wait_for(lambda: (seen := scrape(url)).get(("headrace_loader_restarts_total",)) and seen, "all arrives")
    assert found["headrace_feed_items_total", ("stage", "read")] == 8 + 2


def test_parts_add_up_to_the_step_where_compute_is_told_in_parts(tmp_path):
    parts = {"wait_sec": 0.125, "compute_sec": 0.375, "forward_sec": 0.125, "backward_sec": 0.25}
    with endpoint(tmp_path) as (writer, url):
        writer.write("step", step=1, sec=0.5, **parts)
        found = wait_for(lambda: (seen := scrape(url))["headrace_steps_total",] and seen, "the step arrives")
    assert sum(value for name, value in found.items() if name[0] == "headrace_step_part_seconds_total") == 0.5


def test_the_port_is_free_again_after_the_run(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with endpoint(folder, hr.Prometheus(port)) as (_, url):
            assert ("headrace_step",) in scrape(url)


def test_a_port_that_is_taken_is_told_and_the_run_goes_on(tmp_path, caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        sink = hr.Prometheus(taken.getsockname()[1])
        with endpoint(tmp_path, sink) as (writer, _):
            writer.write("step", step=1)
    assert [event["state"] for event in told_of_sinks(tmp_path)] == ["failed"]
    assert f"the sink prometheus ({sink.target(tmp_path)}) failed, and the run goes on without it" in caplog.text
    assert "Address already in use" in caplog.text


def expressions():
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_name_on_the_dashboard_is_on_the_endpoint(tmp_path):
    with endpoint(tmp_path) as (writer, url):
        write_example(writer)
        found = wait_for(lambda: (seen := scrape(url)).get(("headrace_loader_restarts_total",)) and seen, "all arrives")
    offered = {name for name, *_ in found}
    shown = {name for expr in expressions() for name in re.findall(r"\b(?:headrace|process)_\w+", expr)}
    assert shown <= offered
    assert len(shown) > 15


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus (apt-get install prometheus)")
def test_a_real_prometheus_answers_every_panel_of_the_dashboard(tmp_path):
    port = free_port()
    (tmp_path / "run").mkdir()
    with endpoint(tmp_path / "run") as (writer, url):
        address = urllib.parse.urlsplit(url).netloc
        (tmp_path / "prometheus.yml").write_text(
            "scrape_configs: [{job_name: headrace, scrape_interval: 200ms, scrape_timeout: 200ms, "
            f"static_configs: [{{targets: ['{address}']}}]}}]\n"
        )
        command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        with running([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL):
            steps = iter(range(1, 10_000))

            def answer(expr):
                """What it says while the run goes on."""
                writer.write("step", step=next(steps), loss=0.5, sec=0.05, samples=64, wait_sec=0.01, compute_sec=0.04)
                asked = expr.replace("$instance", ".*").replace("$__rate_interval", "10s")
                query = urllib.parse.urlencode({"query": asked})
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=30) as got:
                        return json.load(got)["data"]["result"]
                except OSError as err:
                    if getattr(err, "code", 503) != 503:  # it does not understand the query
                        raise
                    return []  # it is not up yet

            write_example(writer)
            for expr in expressions():
                wait_for(lambda expr=expr: answer(expr), f"Prometheus has an answer to {expr}")
            (found,) = answer('sum(headrace_step_part_seconds_total{part="compute"})')
            assert float(found["value"][1]) > 0.3


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (apt-get install prometheus)")
def test_names_and_units_are_as_prometheus_wants_them(tmp_path):
    with endpoint(tmp_path) as (writer, url):
        write_example(writer)
        wait_for(lambda: scrape(url).get(("headrace_loader_restarts_total",)), "all arrives")
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read()
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
