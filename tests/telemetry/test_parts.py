"""A record in parts is one record to all that read it, whenever they read and wherever the writer dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.report import read_run
from headrace.report.follow import Follower
from headrace.telemetry import EventWriter, Tail, num_bytes, parts, read_events


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 300)


def write(path, numbers, often=False):
    writer = EventWriter(path)
    for number in numbers:
        (writer.write_often if often else writer.write)("step", step=number)
    writer.close()


def steps(events):
    return [event["step"] for event in events]


@pytest.mark.parametrize("often", [False, True])
def test_full_files_become_parts_and_readers_see_one_record(tmp_path, small_parts, often):
    path = tmp_path / "events.jsonl"
    write(path, range(30), often)
    write(path, range(30, 60), often)  # a run that is started again
    names = [part.name for part in parts.part_paths(path)]
    assert names[0] == "events-0001.jsonl"
    assert (len(names) > 5) is (not often)
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "events.jsonl"])
    assert steps(read_events(path)) == list(range(60))
    assert steps(Tail(path).new_events()) == list(range(60))
    assert read_run(tmp_path).num_steps == 60
    assert num_bytes(path) == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert all(file.stat().st_size <= 400 for file in tmp_path.iterdir() if not often)


@given(st.lists(st.integers(0, 25), min_size=1, max_size=8), st.integers(40, 900))
def test_a_follower_gets_every_event_once_however_many_parts_begin_between_two_looks(tmp_path_factory, looks, size):
    path = tmp_path_factory.mktemp("run") / "events.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", size)
        writer = EventWriter(path)
        tail, found, written = Tail(path), [], 0
        for count in looks:
            for _ in range(count):
                writer.write("step", step=written)
                written += 1
            found += steps(tail.new_events())
            tail = Tail(path, tail.at)  # or another process, that knows how far this one came
        writer.close()
    assert found == steps(read_events(path)) == list(range(written))


def test_reading_while_parts_begin_gives_a_beginning_of_the_record(tmp_path, small_parts):
    path = tmp_path / "events.jsonl"
    write(path, [0])
    writing = threading.Thread(target=write, args=(path, range(1, 400)))
    writing.start()
    follower, followed = Follower(tmp_path), []
    while writing.is_alive():
        found = steps(read_events(path))
        assert found == list(range(len(found)))
        followed += steps(follower.new_events())
    writing.join()
    assert followed + steps(follower.new_events()) == steps(read_events(path)) == list(range(400))


def test_a_writer_that_dies_between_the_two_names_leaves_one_record(tmp_path, small_parts):
    path = tmp_path / "events.jsonl"
    code = f"""
import os, signal
from pathlib import Path
from headrace.telemetry import EventWriter, parts
parts.PART_BYTES = 300
writer = EventWriter({str(path)!r})
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
for step in range(100):
    writer.write("step", step=step)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (part,) = parts.part_paths(path)
    assert part.samefile(path)
    found = steps(read_events(path))
    assert found == list(range(len(found)))
    assert num_bytes(path) == path.stat().st_size
    write(path, range(len(found), 60))
    assert steps(read_events(path)) == steps(Tail(path).new_events()) == list(range(60))
    assert not part.samefile(path)
    numbers = [int(one.stem[-4:]) for one in parts.part_paths(path)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_where_files_have_one_name_only_all_is_in_one_file(tmp_path, small_parts, monkeypatch):
    def refuse(*_):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(parts.os, "link", refuse)
    write(tmp_path / "events.jsonl", range(60))
    assert os.listdir(tmp_path) == ["events.jsonl"]
    assert steps(read_events(tmp_path / "events.jsonl")) == list(range(60))


def test_other_files_beside_it_are_no_parts(tmp_path, small_parts):
    for name in ("events-x.jsonl", "events-.jsonl", "events-0001.json", "events.jsonl.bak"):
        (tmp_path / name).write_text('{"event": "step", "step": 7}\n')
    write(tmp_path / "events.jsonl", range(3))
    assert steps(read_events(tmp_path / "events.jsonl")) == [0, 1, 2]
