"""Events: one JSON object a line, whatever happens to the process that writes."""

import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from headrace.errors import OptionError, StorageError
from headrace.telemetry import EventWriter, read_events
from waiting import wait_for


def write(path, *events):
    writer = EventWriter(path)
    for event, fields in events:
        writer.write(event, **fields)
    writer.close()


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, ("start", {"config": {"lr": 0.1}}), ("step", {"step": 1, "loss": None}))
    start, step = read_events(path)
    assert (start["event"], start["config"]) == ("start", {"lr": 0.1})
    assert (step["event"], step["step"], step["loss"]) == ("step", 1, None)
    assert min(start["time"], step["time"]) > 1e9


def test_lines_are_valid_json_without_nan(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, ("step", {"loss": float("nan"), "top": float("inf"), "x": np.float32(0.5), "counts": np.arange(2)}))
    event = json.loads(path.read_text("utf-8"), parse_constant=pytest.fail)
    assert (event["loss"], event["top"], event["x"], event["counts"]) == (None, None, 0.5, [0, 1])


def test_events_that_come_often_are_written_together_and_in_order(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write("start")
    for step in range(50):
        writer.write_often("step", step=step)
    writer.write("feed")
    assert [event.get("step", event["event"]) for event in read_events(writer.path)] == ["start", *range(50), "feed"]
    writer.write_often("step", step=50)
    writer.close()
    assert [event.get("step") for event in read_events(writer.path)][-1] == 50


def test_nothing_waits_for_long_though_nothing_follows(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    for number in range(3):
        writer.write_often("step", step=number)
        wait_for(lambda n=number: len(list(read_events(writer.path))) == n + 1, "an event is written")
    writer.close()


def test_events_of_several_threads_are_all_there(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    threads = [
        threading.Thread(target=lambda: [writer.write_often("step", step=step) for step in range(2000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert sorted(event["step"] for event in read_events(writer.path)) == sorted(4 * list(range(2000)))


def test_a_value_that_is_no_json_is_named_and_spoils_nothing_else(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl")
    writer.write_often("step", step=0)
    with pytest.raises(OptionError, match="numbers, texts, lists and dicts: loss of 'step' cannot be written"):
        writer.write_often("step", step=1, loss=object())
    writer.write("step", step=2)
    assert [event["step"] for event in read_events(writer.path)] == [0, 2]


def test_a_process_that_ends_without_closing_leaves_what_waited(tmp_path):
    code = "import sys; from headrace.telemetry import EventWriter; w = EventWriter(sys.argv[1]);" + 9 * (
        "w.write_often('step');"
    )
    subprocess.run([sys.executable, "-c", code + "raise SystemExit(3)", tmp_path / "events.jsonl"], check=False)
    assert len(list(read_events(tmp_path / "events.jsonl"))) == 9


def test_writing_again_appends(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, ("start", {}))
    write(path, ("start", {"attempt": 1}))
    assert [event.get("attempt") for event in read_events(path)] == [None, 1]


def test_a_torn_line_costs_itself_only(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, ("step", {"step": 1}))
    with open(path, "ab") as file:
        file.write(b'{"event": "step", "ste')
    assert [event["step"] for event in read_events(path)] == [1]
    write(path, ("step", {"step": 2}))
    assert [event["step"] for event in read_events(path)] == [1, 2]


def test_lines_that_are_no_events_are_passed_over(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'[1]\n{"no": "event"}\n{"event": 3}\n\xff\n\n{"event": "end"}\n')
    assert [event["event"] for event in read_events(path)] == ["end"]


def test_kill_loses_nothing_that_was_written(tmp_path):
    """Events are not buffered: what write() returned from is in the file, even if the process is killed right after."""
    path = tmp_path / "events.jsonl"
    code = f"""
import os, signal
from headrace.telemetry import EventWriter
writer = EventWriter({str(path)!r})
for step in range(100):
    writer.write("step", step=step)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert [event["step"] for event in read_events(path)] == list(range(100))


def test_places_that_cannot_be_used_are_one_clear_line(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write the run's events to .*: No such file or directory"):
        EventWriter(tmp_path / "no" / "events.jsonl")
    with pytest.raises(StorageError, match=r"cannot read the run's events from .*: No such file or directory"):
        list(read_events(tmp_path / "events.jsonl"))
    with pytest.raises(StorageError, match=r"cannot read .*: Is a directory"):
        list(read_events(tmp_path))
