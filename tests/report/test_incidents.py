"""What happened in a run: one list in the order of time, and marks at its steps."""

from __future__ import annotations

from run_files import RunFile, write_run

from headrace.report import read_run
from headrace.report.beside import read_beside
from headrace.report.incidents import incidents
from headrace.report.plots import marks_of


def happened_in(folder):
    run = read_run(folder)
    return incidents(run, read_beside(run.path).alarms)


def test_everything_that_happened_is_there_in_the_order_of_time(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    file.step(1, loss=1.0, compute=0.1)
    file.write("guard", step=1, guard="spike", detail="the loss is 9 times as large", action="step skipped")
    file.clock.now += 1
    file.write("alarm", step=1, rule="au", message="AU was below 0.5 for 10 min")
    file.clock.now += 1
    file.write("loader_restart", step=1, process="worker", reason="it was killed")
    file.clock.now += 1
    file.write("checkpoint", step=1, path="checkpoints/step-00000001", sec=0.1, bytes=2_000)
    file.step(2, loss=1.0, compute=0.1)
    file.start(step=1, attempt=1)
    file.write("evaluate", step=1, epoch=0, loss=0.5, metrics={"accuracy": 0.9}, samples=5, sec=0.1)
    file.write("stop", step=1, reason="asked to")
    file.clock.now += 1
    file.write("error", rank=1, step=None, type="ValueError", message="no")
    happened = happened_in(tmp_path)
    assert [(one.kind, one.title, one.detail) for one in happened] == [
        ("start", "start", "fresh"),
        ("guard", "guard: spike", "the loss is 9 times as large: step skipped"),
        ("alarm", "alarm: au", "AU was below 0.5 for 10 min"),
        ("feed", "feed replaced", "worker process: it was killed"),
        ("checkpoint", "checkpoint", "checkpoints/step-00000001, 2.00 KB in 100 ms"),
        ("restart", "restart", "from checkpoints/step-00000001, 1 step done again"),
        ("evaluation", "evaluation", "loss 0.5000, accuracy 0.9000"),
        ("stop", "stop", "asked to"),
        ("error", "error", "rank 1: ValueError: no"),
    ]
    assert [(mark.kind, mark.step, mark.width) for mark in marks_of(happened)] == [
        ("restart", 1, 1),
        ("checkpoint", 1, 0),
        ("guard", 1, 0),
        ("alarm", 1, 0),
        ("feed", 1, 0),
    ]


def test_an_alarm_cut_off_by_a_crash_and_a_step_that_speaks_of_alarms_are_none(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    file.write("step", step=1, loss=1.0, metrics={"alarm": 1.0}, sec=0.1)
    with open(file.path, "ab") as torn:
        torn.write(b'{"event":"alarm","step":1,"ru')
    assert [one.kind for one in happened_in(tmp_path)] == ["start"]


def test_of_very_many_only_some_are_marked(tmp_path):
    file = RunFile(tmp_path)
    file.start()
    file.write_many({"event": "guard", "step": step, "guard": "finite", "action": "skipped"} for step in range(950))
    marks = marks_of(happened_in(tmp_path))
    assert 50 < len(marks) <= 100
    assert all(mark.text.startswith("guard: finite") for mark in marks)


def test_a_runs_checkpoints_are_marked_at_their_steps(tmp_path):
    marks = marks_of(happened_in(write_run(tmp_path / "run", num_steps=200, crash_at=None)))
    assert [mark.step for mark in marks] == [100, 200]
