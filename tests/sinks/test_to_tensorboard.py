"""TensorBoard's own reader finds in its files what the run wrote."""

from __future__ import annotations

import subprocess
import sys

import pytest
from run_files import RunFile, write_run

import headrace as hr
from headrace.errors import OptionError
from headrace.sinks import send
from headrace.sinks.feeding import Feed
from headrace.telemetry import EventWriter, read_events

pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'headrace[tensorboard]'")


def accumulated(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return found


def steps_of(run_dir):
    return [event for event in read_events(run_dir / "events.jsonl") if event["event"] == "step"]


def test_every_step_of_a_run_is_there_with_its_time(tmp_path):
    run = write_run(tmp_path, 60, crash_at=None)
    (sent,) = send(run, [hr.TensorBoard(every_sec=0)])
    assert (sent.where, sent.events) == (str(run / "tensorboard"), len(list(read_events(run / "events.jsonl"))))
    found = accumulated(run / "tensorboard")
    losses = found.Scalars("train/loss")
    written = steps_of(run)
    assert [one.step for one in losses] == [step["step"] for step in written]
    assert [one.value for one in losses] == pytest.approx([step["loss"] for step in written])
    assert [one.wall_time for one in losses] == pytest.approx([step["time"] for step in written])
    tags = set(found.Tags()["scalars"])
    assert {"train/lr", "train/accuracy", "train/samples_per_sec", "time/step_sec", "time/wait_sec"} <= tags
    assert {"evaluate/loss", "evaluate/accuracy", "feed/transform/busy_sec"} <= tags
    (text,) = found.Tensors("run")
    assert b"digits.py" in text.tensor_proto.string_val[0]


def test_steps_that_a_restart_did_again_are_shown_once(tmp_path):
    run = write_run(tmp_path, 60, crash_at=40)  # it went on from its beginning
    send(run, [hr.TensorBoard(every_sec=0)])
    losses = accumulated(run / "tensorboard").Scalars("train/loss")
    assert [one.step for one in losses] == list(range(1, 61))
    assert losses[29].value == pytest.approx(steps_of(run)[40 + 29]["loss"])


def test_what_is_sent_later_is_what_is_new(tmp_path):
    run = RunFile(tmp_path)
    run.start()
    run.step(1, 0.5)
    assert [one.events for one in send(tmp_path, ["tensorboard"])] == [2]
    run.step(2, 0.25)
    assert [one.events for one in send(tmp_path, ["tensorboard"])] == [1]
    assert [one.events for one in send(tmp_path, ["tensorboard"])] == [0]
    losses = accumulated(tmp_path / "tensorboard").Scalars("train/loss")
    assert [(one.step, one.value) for one in losses] == [(1, 0.5), (2, 0.25)]


def test_a_run_is_the_same_by_every_path_and_after_it_was_moved(tmp_path, monkeypatch):
    write_run(tmp_path / "runs/one", 20, crash_at=None)
    send(tmp_path / "runs/one", ["tensorboard"])
    monkeypatch.chdir(tmp_path / "runs")
    assert [sent.events for sent in send("one", ["tensorboard"])] == [0]
    (tmp_path / "runs/one").rename(tmp_path / "two")
    assert [sent.events for sent in send(tmp_path / "two", ["tensorboard"])] == [0]


def test_another_folder_is_another_sink(tmp_path):
    write_run(tmp_path / "run", 20, crash_at=None)
    send(tmp_path / "run", ["tensorboard"])
    (sent,) = send(tmp_path / "run", [f"tensorboard:{tmp_path / 'all/mine'}"])
    assert sent.events > 20
    assert "train/loss" in accumulated(tmp_path / "all/mine").Tags()["scalars"]


def test_a_monitor_feeds_it_while_its_loop_runs(tmp_path):
    with hr.Monitor(tmp_path, config={"width": 3}, sinks=[hr.TensorBoard(every_sec=0)]) as monitor:
        for number in range(3):
            with monitor.step():
                monitor.note(loss=1.0 / (number + 1), lr=0.1)
        monitor.evaluated(0.125, samples=10, accuracy=0.5)
    found = accumulated(tmp_path / "tensorboard")
    assert [one.value for one in found.Scalars("train/loss")] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [(one.step, one.value) for one in found.Scalars("evaluate/accuracy")] == [(3, 0.5)]


def test_a_disk_that_is_full_ends_only_the_sink(tmp_path, small_disk, caplog):
    sink = hr.TensorBoard(small_disk / "board", every_sec=0)
    with hr.Monitor(tmp_path, sinks=[sink]) as monitor:
        for _ in range(50):
            with monitor.step():
                monitor.note(**{f"metric {number}": float(number) for number in range(200)})
    assert len(steps_of(tmp_path)) == 50
    states = [event["state"] for event in read_events(tmp_path / "events.jsonl") if event["event"] == "sink"]
    assert states[-1] == "failed"
    assert "No space left on device" in caplog.text


def test_neither_torch_nor_tensorflow_is_needed(tmp_path):
    write_run(tmp_path, 20, crash_at=None)
    code = (
        "import sys; from headrace.sinks import send; send(sys.argv[1], ['tensorboard']);"
        "sys.exit('torch' in sys.modules or 'tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 0


def test_the_settings_are_there_at_once_and_without_secrets(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("start", step=0, config={"api_key": "hunter2", "lr": 0.5, "data": "s3://me:hunter2@host/x?y=hunter2"})
    feed = Feed(hr.TensorBoard(), tmp_path)
    feed.deliver()
    writer.close()
    (written,) = (tmp_path / "tensorboard").iterdir()
    assert b'"lr": 0.5' in written.read_bytes()
    assert b"hunter2" not in written.read_bytes()
    feed.finish(None)


@pytest.mark.parametrize("every_sec", [-1, float("nan"), float("inf")])
def test_points_have_a_distance(every_sec):
    with pytest.raises(OptionError, match="every_sec of the sink tensorboard must be 0 or more seconds: got"):
        hr.TensorBoard(every_sec=every_sec).check()
