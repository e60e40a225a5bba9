"""GrowingRun: however a run's events come in, they add up to what reading the whole file gives."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import RunFile, long_run, write_run

from headrace.errors import StorageError
from headrace.report import read_run
from headrace.report.beside import read_beside
from headrace.report.follow import Follower
from headrace.report.growing import GrowingRun
from headrace.telemetry import RANKS

STEP = st.fixed_dictionaries(
    {"event": st.just("step"), "step": st.integers(1, 9), "sec": st.floats(0, 1), "time": st.floats(0, 9)},
    optional={"metrics": st.dictionaries(st.sampled_from("ab"), st.floats(0, 1)), "loss": st.floats(0, 1)},
)
OTHER = st.fixed_dictionaries(
    {
        "event": st.sampled_from(["start", "evaluate", "checkpoint", "feed", "guard", "alarm", "stop", "end", "new"]),
        "step": st.integers(0, 9),
        "time": st.floats(0, 9),
    }
)


def assert_same(one, other):
    for field in fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("steps", "metrics"):
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])
        else:
            assert ours == theirs, field.name


@given(st.lists(STEP | OTHER, min_size=1, max_size=30), st.lists(st.integers(1, 400), max_size=8))
def test_pieces_add_up_to_the_whole(tmp_path_factory, events, cuts):
    """The file grows by any number of bytes at a time, restarts among them."""
    folder = tmp_path_factory.mktemp("run")
    growing = GrowingRun(folder)
    data = b"".join(orjson.dumps(event) + b"\n" for event in events)
    with open(folder / "events.jsonl", "ab", buffering=0) as file:
        for cut in [*cuts, len(data)]:
            file.write(data[:cut])
            data = data[cut:]
            growing.update()
    assert_same(growing.run, read_run(folder))
    assert growing.beside().alarms == read_beside(folder / "events.jsonl").alarms
    assert growing.update() is False


def test_what_is_new_alone_is_read_again_only_after_a_restart(tmp_path, monkeypatch):
    write_run(tmp_path / "whole", num_steps=200, crash_at=110)
    lines = (tmp_path / "whole" / "events.jsonl").read_bytes().splitlines(keepends=True)
    read = []

    def counted(self, new_events=Follower.new_events):
        for event in new_events(self):
            read.append(event)
            yield event

    monkeypatch.setattr(Follower, "new_events", counted)
    growing = GrowingRun(tmp_path)
    with open(tmp_path / "events.jsonl", "ab", buffering=0) as file:
        for line in lines:
            file.write(line)
            growing.update()
    again = next(k for k, line in enumerate(lines) if k and b'"start"' in line) + 1
    assert len(read) == len(lines) + again
    assert growing.run.num_steps == 200
    assert growing.run.lost_steps == 10
    assert growing.present.state == "complete"


def test_ranks_tell_of_their_own_time_in_files_of_their_own(tmp_path):
    growing, main = GrowingRun(tmp_path), RunFile(tmp_path)
    ranks = [RunFile(tmp_path / RANKS, name=f"rank-{rank}.jsonl") for rank in (1, 2)]
    for launch in range(2):
        pids = [10 * launch + rank for rank in range(1 + len(ranks))]
        main.write("start", attempt=0, step=0, pids=pids)
        for rank, file in enumerate(ranks, start=1):
            file.write("start", attempt=0, step=0, rank=rank, pid=pids[rank])
        for step in range(1, 4):
            main.step(step, 1.0, compute=0.1)
            ranks[0].write("rank", rank=1, step=step, steps=1, compute_sec=0.1)
            assert growing.update()
            assert_same(growing.run, read_run(tmp_path))
            assert growing.run.ranks
        del ranks[1:]  # a rank that is gone in the next attempt has no say in it
    ranks[0].write("rank", rank=1, step=9, steps=1, compute_sec=0.1)
    assert growing.update()
    assert not growing.update()


def test_columns_grow_far(tmp_path):
    growing, file = GrowingRun(tmp_path), long_run(tmp_path, 3000) / "events.jsonl"
    growing.update()
    with open(file, "ab") as more:
        more.write(b"".join(file.read_bytes().splitlines(keepends=True)[-2500:]))
    growing.update()
    assert_same(growing.run, read_run(tmp_path))


def test_a_run_that_has_not_begun_is_empty_and_no_folder_is_refused(tmp_path):
    assert not GrowingRun(tmp_path).update()
    assert GrowingRun(tmp_path).run.num_steps == 0
    with pytest.raises(StorageError, match=r"no run at .*nowhere: give the folder of a run"):
        GrowingRun(tmp_path / "nowhere")


def test_events_that_were_deleted_and_begun_anew_are_another_run(tmp_path):
    path = write_run(tmp_path / "run", 20, crash_at=None)
    growing = GrowingRun(path)
    assert growing.update()
    (tmp_path / "run/events.jsonl").unlink()
    assert growing.update()
    assert growing.run.num_steps == 0
    RunFile(tmp_path / "run").start(total_steps=7)
    assert growing.update()
    assert_same(growing.run, read_run(path))
    assert (growing.present.total_steps, growing.present.num_restarts) == (7, 0)
    assert growing.update() is False
