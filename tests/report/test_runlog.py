"""read_run: the one history that led to the final state, with what was lost counted."""

import numpy as np
import pytest
from run_files import RunFile, write_run

from headrace.errors import StorageError
from headrace.report import read_run, write_page
from headrace.report.runlog import PARTS
from headrace.telemetry import EventWriter


def test_steps_of_a_restart_replace_those_that_were_lost(tmp_path):
    run = read_run(write_run(tmp_path, num_steps=600, crash_at=330))
    assert run.steps["step"].tolist() == list(range(1, 601))
    assert run.num_restarts == 1
    assert run.lost_steps == 30
    assert run.lost_sec == pytest.approx(30 * 0.053, rel=0.2)
    assert [e["step"] for e in run.evaluations] == list(range(60, 601, 60))
    assert [e["step"] for e in run.checkpoints] == list(range(100, 601, 100))
    assert run.end is not None


def test_several_restarts_add_up(tmp_path):
    file = RunFile(tmp_path)
    for attempt, (first, last) in enumerate([(1, 5), (4, 9), (3, 6)]):
        file.start(step=first - 1, attempt=attempt)
        for step in range(first, last + 1):
            file.step(step, loss=attempt, compute=0.1)
    run = read_run(file.path)
    assert run.steps["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert run.steps["loss"].tolist() == [0, 0, 2, 2, 2, 2]
    assert [a.lost_steps for a in run.attempts] == [0, 2, 7]
    assert run.steady_rows().tolist() == [False, True, False, True, True, True]


def test_evaluations_beyond_the_restart_are_done_again(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    for step in (1, 2):
        file.step(step, loss=1.0, compute=0.1)
        file.write("evaluate", step=step, epoch=0, loss=float(step), metrics={}, samples=1, sec=0.1)
    file.start(step=1, attempt=1)
    assert [e["step"] for e in read_run(file.path).evaluations] == [1]


def test_meters_are_those_of_the_last_attempt(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    file.feed(5, {"read": 1.0}, 5)
    file.start(step=0, attempt=1)
    assert read_run(file.path).feeds == ()


def test_unknown_values_are_nan(tmp_path):
    file = RunFile(tmp_path)
    file.write("step", step=1, loss=None, metrics={"accuracy": None})
    file.write("step", step=2, loss=0.5)
    run = read_run(tmp_path)
    assert np.isnan(run.steps["loss"]).tolist() == [True, False]
    assert np.isnan(run.steps["sec"]).all()
    assert np.isnan(run.metrics["accuracy"]).all()


def test_a_finished_run_that_goes_on_is_not_finished(tmp_path):
    write_run(tmp_path, num_steps=20, crash_at=None)
    file = RunFile(tmp_path)
    file.start(step=20, attempt=1)
    assert read_run(tmp_path).end is None


def test_a_torn_last_line_is_passed_over(tmp_path):
    write_run(tmp_path, num_steps=30, crash_at=None)
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(b'{"event": "step", "st')
    assert read_run(tmp_path).num_steps == 30


def test_reads_what_the_event_writer_writes(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("step", step=np.int64(1), loss=np.float32(0.5), sec=float("nan"))
    writer.close()
    run = read_run(tmp_path)
    assert run.steps["loss"].tolist() == [0.5]
    assert np.isnan(run.steps["sec"][0])


def test_no_run_is_one_clear_line(tmp_path):
    with pytest.raises(StorageError, match=r"no events of a run at .*: give the folder of a run"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "events.jsonl").write_bytes(b"not json\n")
    with pytest.raises(StorageError, match="holds no events of a run"):
        read_run(tmp_path)


def test_what_guards_found_stays_on_record_over_restarts(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    file.step(1, loss=1.0, compute=0.1)
    file.write("guard", step=1, guard="finite", detail="the loss is not finite", action="step skipped")
    file.start(step=1, attempt=1)
    run = read_run(file.path)
    assert [event["action"] for event in run.guards] == ["step skipped"]
    assert "the loss is not finite: step skipped" in write_page(tmp_path).read_text()


def test_replaced_processes_of_the_feed_stay_on_record_over_restarts(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    file.step(1, loss=1.0, compute=0.1)
    file.write("loader_restart", step=1, process="worker", reason="exit code 3")
    file.start(step=1, attempt=1)
    file.step(2, loss=1.0, compute=0.1)
    run = read_run(file.path)
    assert [event["reason"] for event in run.loader_restarts] == ["exit code 3"]
    assert "worker process: exit code 3" in write_page(tmp_path).read_text()


def test_parts_of_compute_are_told_where_every_step_has_them(tmp_path):
    known = {"forward_sec": 0.1, "backward_sec": 0.2, "optimizer_sec": 0.1}
    mixed = known | {"forward_sec": None, "backward_sec": None}
    file = RunFile(tmp_path)
    file.write("step", step=1, sec=0.4, compute_sec=0.4, **known)
    assert "forward" in read_run(tmp_path).parts
    file.write("step", step=2, sec=0.4, compute_sec=0.4, **mixed)
    assert read_run(tmp_path).parts == PARTS
