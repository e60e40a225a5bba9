"""What the machine was busy with stands at the steps that were done when it was looked at."""

import pytest
from run_files import RunFile

from headrace.report import read_run, write_page
from headrace.report.host_charts import host_charts


@pytest.fixture
def run(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    for step in range(1, 101):
        file.step(step, loss=1.0, compute=0.1)
    return file


def look(file, sec, **readings):
    """So many seconds after the start's own 1.5 s."""
    return {"event": "host", "time": 1_790_000_001.5 + sec, **readings}


def charts_of(file, looks):
    return {chart.title: chart for chart in host_charts(read_run(file.path), looks, ())}


def test_a_look_stands_at_the_step_that_was_done_last(run):
    looks = [look(run, sec, cpu=cpu) for sec, cpu in ((0.55, 0.1), (1.05, 0.2), (1.09, 0.3), (9.0, 0.4), (99, 0.5))]
    [chart] = charts_of(run, looks).values()
    [cpu] = chart.series
    assert cpu.x.tolist() == [5, 10, 90, 100]
    assert cpu.y == pytest.approx([10, 30, 40, 50])  # of two during one step the later
    assert chart.span == (1, 100)


def test_of_gpus_the_mean_and_nothing_of_what_is_not_known(run):
    looks = [look(run, sec, gpu_running=[0.2, None, 0.6], disk_read_bytes_per_sec=None) for sec in (1, 2, 3)]
    charts = charts_of(run, looks)
    assert list(charts) == ["GPUs"]
    assert charts["GPUs"].series[0].y == pytest.approx([40, 40, 40])


def test_what_is_as_good_as_nothing_has_no_chart(run):
    assert charts_of(run, [look(run, sec, network_sent_bytes_per_sec=8.0, cpu=0.0) for sec in (1, 2, 3)]) == {}


def test_two_looks_are_no_course(run):
    assert charts_of(run, [look(run, sec, cpu=0.5) for sec in (1, 2)]) == {}
    assert charts_of(run, [look(run, sec, cpu=0.5) for sec in (-3, -2, -1)]) == {}  # before any step


def test_they_are_on_the_page(run):
    run.write_many(look(run, sec, cpu=0.5, memory_used_bytes=3e9, process_bytes=1e9) for sec in range(1, 9))
    page = write_page(run.path).read_text("utf-8")
    assert "<h3>Processors</h3>" in page
    assert "in use 3.00, at most 3.00; rank 0&#x27;s process 1.00, at most 1.00" in page
