"""`headrace watch`: what is new in a run is read as it comes, judged by its latest half minute, and shown."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from run_files import RunFile, write_run

from headrace.errors import StorageError
from headrace.report import verdict
from headrace.report.follow import Follower, Present, Trend
from headrace.report.screen import line, screen, trend
from waiting import running, wait_for

WATCH = [sys.executable, "-c", "from headrace.cli.main import main; main()", "watch"]


def present_of(folder):
    follower = Follower(folder)
    present = Present(follower.path)
    for event in follower.new_events():
        present.take(event)
    return present


def shown(present, encoding="utf-8", width=100):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width, no_color=True)
    console.print(screen(present, console))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_events_are_read_once_and_a_torn_line_when_it_is_whole(tmp_path):
    follower = Follower(tmp_path)
    assert list(follower.new_events()) == []  # the run has not begun
    with open(tmp_path / "events.jsonl", "ab") as file:
        for text, steps in (
            (b'{"event": "step", "step": 1}\n{"event": "st', [1]),
            (b'ep", "step": 2}\n', [2]),
            (b"", []),
        ):
            file.write(text)
            file.flush()
            assert [event["step"] for event in follower.new_events()] == steps
    with pytest.raises(StorageError, match=r"no run at .*nowhere: give the folder of a run"):
        Follower(tmp_path / "nowhere")


@given(st.lists(st.floats(-10, 10), max_size=2000))
def test_a_trend_has_few_points_in_order_with_the_mean_of_all_they_stand_for(values):
    made = Trend()
    for value in values:
        made.add(value)
    assert len(made.points) < 240
    each = made._each
    assert len(made.points) == len(values) // each
    for number, point in enumerate(made.points):
        part = values[number * each : (number + 1) * each]
        assert point == pytest.approx(sum(part) / each, abs=1e-9)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 60), st.booleans())
def test_a_row_of_bars_is_as_wide_as_asked_at_most(values, width, plain):
    bars = trend(values, width, plain)
    assert len(bars) == min(width, len(values))
    if plain:
        assert bars.isascii()


def test_it_is_judged_by_its_latest_half_minute(tmp_path):
    run = RunFile(tmp_path)
    run.start()
    for step in range(1, 301):  # 60 s of waiting, then 60 s of computing
        run.step(step, 1.0, wait=0.2)
    for step in range(301, 601):
        run.step(step, 1.0, batch=512, compute=0.2)
    present = present_of(tmp_path)
    assert verdict(present.run()).bound == "compute"
    assert present.samples_per_sec == pytest.approx(512 / 0.2)
    assert present.sec_per_step == pytest.approx(0.2)
    assert verdict(tmp_path).bound == "input"  # as a whole


def test_the_latest_alarm_is_shown(tmp_path):
    run = RunFile(tmp_path)
    run.start()
    run.step(1, 1.0, compute=0.1)
    assert "alarm at" not in shown(present_of(tmp_path))
    for rule, message in (("disk", "1 GB left"), ("au", "the accelerator computes 20 % of the time")):
        run.write("alarm", step=1, rule=rule, message=message, value=0.2, limit=0.5)
    present = present_of(tmp_path)
    text = shown(present)
    assert line(present).endswith(": the accelerator computes 20 % of the time")
    assert re.search(r"alarm at step 1, 2026-09-2\d \d\d:\d\d UTC: the accelerator computes 20 % of the time", text)
    assert "1 GB left" not in text


def test_how_long_is_left_goes_by_the_pace_now(tmp_path):
    run = RunFile(tmp_path)
    run.start(total_steps=600)
    for step in range(1, 101):
        run.step(step, 1.0, compute=0.5)
    assert present_of(tmp_path).sec_left == pytest.approx(500 * 0.5)


@pytest.mark.parametrize(
    ("event", "state"), [("end", "complete"), ("stop", "stopped"), ("error", "failed"), (None, "running")]
)
def test_how_a_run_stands(tmp_path, event, state):
    run = RunFile(tmp_path)
    assert present_of(tmp_path).state == "waiting"
    run.start()
    run.step(1, 1.0, compute=0.1)
    if event is not None:
        run.write(event, step=1, rank=1, type="TrainingError", message="the loss must be finite")
    present = present_of(tmp_path)
    assert present.state == state
    assert f"{tmp_path}  {state}" in shown(present, width=300)
    assert ("rank 1: TrainingError: the loss must be finite" in shown(present)) == (event == "error")
    run.start(step=0, attempt=1)  # by its launcher
    present = present_of(tmp_path)
    assert (present.state, present.num_restarts) == ("running", 1)


def test_a_run_whose_processes_are_gone_without_a_word_is_told_from_one_that_goes_on(tmp_path):
    with running([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        run = RunFile(tmp_path)
        run.start(pids=[process.pid], machine={"host": os.uname().nodename})
        assert present_of(tmp_path).state == "running"
        process.kill()
        process.wait()
    assert present_of(tmp_path).state == "gone"
    RunFile(tmp_path / "elsewhere").start(pids=[process.pid], machine={"host": "node-7"})
    assert present_of(tmp_path / "elsewhere").state == "running"


def test_the_screen_has_all_of_it(tmp_path):
    text = shown(present_of(write_run(tmp_path / "digits")), width=300)
    for part in (
        "step 600 of 600",
        "100 %",
        "samples/s",
        "loss 0.",
        "compute ",
        "wait ",
        "transform",
        "threads at work",
    ):
        assert part in text
    assert verdict(present_of(tmp_path / "digits").run()).sentence.partition(".")[0] in text
    assert "evaluated after step 600: loss" in text
    assert "saved after step 600, 12.4 MB" in text
    assert "started again 1 time" in text


def test_a_terminal_without_block_characters_gets_letters(tmp_path):
    present = present_of(write_run(tmp_path / "digits"))
    text = shown(present, encoding="latin-1")
    assert not set(text) & set("█░▁▂▃▄▅▆▇")
    assert "time  cccc" in text
    assert "#####" in text
    assert "\n" not in line(present)


def test_guards_and_damaged_samples_are_told(tmp_path):
    run = RunFile(tmp_path)
    run.start()
    run.step(1, 1.0, compute=0.1)
    run.write("guard", step=1, guard="finite", detail="the loss is not finite", action="the step is left out")
    run.write("feed", step=1, stages={}, skipped=3)
    text = shown(present_of(tmp_path))
    assert "step 1: finite: the loss is not finite: the step is left out" in text
    assert "left out as damaged: 3 samples" in text


def test_it_follows_a_run_to_its_end_in_lines_where_there_is_no_terminal(tmp_path):
    run = RunFile(tmp_path)
    with running([*WATCH, str(tmp_path), "--every", "0.1"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("waiting, step 0")
        run.start(total_steps=20)
        for step in range(1, 21):
            run.step(step, 0.5, compute=0.1)
        assert wait_for(lambda: "step 20 of 20; loss 0.5000" in process.stdout.readline(), "its latest step")
        run.write("end", step=20)
        *_, last = process.stdout
        assert process.wait() == 0
    assert last.startswith("complete, step 20 of 20; loss 0.5000; 2,560 samples/s; Compute-bound")


def test_json_is_the_last_line(tmp_path):
    write_run(tmp_path, num_steps=60, crash_at=None)
    done = subprocess.run([*WATCH, str(tmp_path), "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout, parse_constant=pytest.fail)
    assert (result["state"], result["step"], result["total_steps"]) == ("complete", 60, 60)
    assert result["verdict"].startswith("Input-bound: ")
    assert done.stderr == ""


def test_on_a_terminal_it_is_one_screen_until_ctrl_c(tmp_path):
    run = RunFile(tmp_path)
    run.start(total_steps=20)
    run.step(1, 0.5, compute=0.1)
    ours, theirs = pty.openpty()
    with running([*WATCH, str(tmp_path), "--every", "0.1"], stdout=theirs, stderr=theirs, stdin=theirs) as process:
        os.close(theirs)
        seen = bytearray()

        def read_until(text):
            while text not in seen:
                seen.extend(os.read(ours, 4096))

        read_until(b"step 1 of 20")
        run.step(2, 0.5, compute=0.1)
        read_until(b"step 2 of 20")
        assert b"\x1b[2K" in seen  # in place
        process.send_signal(signal.SIGINT)
        read_until(b"\x1b[?25h")  # the cursor is back
        assert process.wait() == 0
    os.close(ours)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [(["nowhere"], 1, "no run at nowhere"), ([".", "--every", "0"], 2, "--every must be 0.1 seconds or more: got 0.0")],
)
def test_what_cannot_be_watched_is_one_line(tmp_path, arguments, code, message):
    done = subprocess.run([*WATCH, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"headrace: {message}")
    assert done.stderr.count("\n") == 1
