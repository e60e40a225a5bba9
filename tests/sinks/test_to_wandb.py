"""What a run wrote is in the file of an offline run, read by W&B's own messages. Nothing goes out.

The file is a log as LevelDB writes it: blocks of 32 KiB, in them pieces with a checksum, a length and a type.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from run_files import RunFile, write_run

import headrace as hr
from headrace.sinks import send
from headrace.telemetry import read_events
from waiting import wait_for

pytest.importorskip("wandb", reason="needs wandb: pip install 'headrace[wandb]'")


@pytest.fixture(autouse=True)
def nothing_is_told_to_wandb(monkeypatch):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DISABLE_STATS", "true")


def records(path):
    """Those of a run that has ended: its own process writes the file, a moment after `finish` in ours."""
    return wait_for(lambda: (found := read(path)) and found[-1].HasField("exit") and found, "the end of the file")


def read(path):
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4) and at <= len(data):  # whole, or the last piece
            found.append(Record.FromString(whole))
            whole = b""
    return [record for record in found if record.WhichOneof("record_type") != "footer"]


def offline_runs(folder):
    """The rows, the config, the exit code and the names of each offline run, oldest first."""
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        found = records(path)
        rows = [values(record.history.item) for record in found if record.HasField("history")]
        config = {}
        for record in found:
            config |= values(record.config.update)
        yield rows, config, found[-1].exit.exit_code, next(record.run for record in found if record.HasField("run"))


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_every_step_of_a_run_is_there_with_its_time_and_the_config(tmp_path):
    run = write_run(tmp_path / "digits-1", 60, crash_at=None)
    (sent,) = send(run, [hr.WandB(project="mine", every_sec=0)])
    ((rows, config, code, about),) = offline_runs(run)
    assert sent.where.startswith(str(run / "wandb/offline-run-"))
    steps = [event for event in read_events(run / "events.jsonl") if event["event"] == "step"]
    found = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in found] == [step["step"] for step in steps]
    assert [row["train/loss"] for row in found] == [step["loss"] for step in steps]
    assert [row["_timestamp"] for row in found] == [step["time"] for step in steps]
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert any("evaluate/accuracy" in row for row in rows)
    assert config["settings"]["batch_size"] == 128
    assert config["precision"] == "bf16"
    assert (about.project, about.display_name, code) == ("mine", "digits-1", 0)


def test_a_run_that_is_gone_on_with_is_one_run_there(tmp_path):
    run = RunFile(tmp_path)
    for attempt in range(2):
        run.start(step=attempt, attempt=attempt)
        run.step(attempt + 1, 0.5)
        send(tmp_path, [hr.WandB(every_sec=0)])
        ended = int(time.time())
        wait_for(lambda ended=ended: int(time.time()) > ended, "another second, which names W&B's folders")
    (first, _, _, one), (second, _, _, other) = offline_runs(tmp_path)
    assert one.run_id == other.run_id
    assert [(row["_step"], row["step"]) for row in first + second] == [(0, 1), (1, 2)]


def test_a_monitor_feeds_it_and_a_run_of_the_scripts_own_is_left_alone(tmp_path):
    import wandb

    own = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True, console="off"))
    with (
        suppress(MemoryError),
        hr.Monitor(tmp_path / "run", sinks=[hr.WandB(every_sec=0)]) as monitor,
    ):
        for _ in range(3):
            with monitor.step():
                monitor.note(loss=0.5)
        raise MemoryError
    assert wandb.run is own
    own.finish()
    ((rows, _, code, _),) = offline_runs(tmp_path / "run")
    assert [row["train/loss"] for row in rows] == [0.5] * 3
    assert code == 1
