"""A rank that hangs ends all ranks, and the report names it and where it is."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from subprocess import PIPE

import pytest
from hang_run import LIMIT_SEC
from problems import trainer
from processes import HERE, ended, run_ranks, started_ranks

from headrace.errors import OptionError
from headrace.telemetry import read_events
from headrace.train.archive import Archive
from headrace.train.hang import Sighting, judge, place_of
from headrace.train.watchdog import Watchdog
from waiting import DEADLINE_SEC, running, wait_gone


def hung(how, run_dir):
    """What two ranks came to in a run that hangs: (exit code, stdout, stderr) of each."""
    with started_ranks(2, [HERE / "hang_run.py", how, run_dir]) as processes:
        return ended(processes)


def verdict(run_dir):
    return (run_dir / "hang/report.txt").read_text()


def test_a_rank_that_never_ends_is_named_with_its_line(tmp_path):
    found = hung("never_ends", tmp_path)
    assert [code for code, _, _ in found] == [1, 1]
    assert verdict(tmp_path).startswith("rank 1, step 3: hangs in user code (hang_run.py:")
    assert "in never_ends)" in verdict(tmp_path)
    assert "while rank 0 waits in the reduction of gradients; stacks of all ranks are in" in verdict(tmp_path)
    assert verdict(tmp_path).strip() in found[0][2]  # told once, by the first
    assert "hangs" not in found[1][2]


def test_every_rank_leaves_its_stacks_and_its_collectives(tmp_path):
    hung("never_ends", tmp_path)
    first, second = ((tmp_path / f"hang/rank-{rank}.txt").read_text() for rank in range(2))
    assert "_engine_run_backward" in first
    assert "threading.Event().wait()" in second
    assert "headrace-watchdog" not in first.splitlines()[0]
    entries = json.loads((tmp_path / "hang/flight-0.json").read_text())["entries"]
    assert entries[-1]["profiling_name"] == "gloo:all_reduce"


def test_a_collective_that_a_rank_left_out_is_named_with_its_line(tmp_path):
    found = hung("leaves_out_a_collective", tmp_path)
    assert [code for code, _, _ in found] == [1, 1]
    assert "barrier (hang_run.py:" in verdict(tmp_path)
    assert "in leaves_out_a_collective)" in verdict(tmp_path)
    assert "a collective was left out, or called in another order" in verdict(tmp_path)


@pytest.mark.parametrize("how", ["is_stopped", "holds_the_lock"])
def test_a_rank_that_cannot_speak_is_named_by_the_others_and_killed(tmp_path, how):
    found = hung(how, tmp_path)
    assert [code for code, _, _ in found] == [1, -9]
    assert verdict(tmp_path).startswith("rank 1, step 3: hangs without a sign of life")
    assert "while rank 0 waits in the reduction of gradients" in verdict(tmp_path)


def test_the_command_says_it_in_one_line_and_starts_nothing_again(tmp_path):
    command = [sys.executable, "-m", "headrace.cli.main", "train", HERE / "hang_run.py", "--set", "how=is_stopped"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    with running([*command, "--nproc", "2", "--run", "r"], cwd=tmp_path, env=environment, stderr=PIPE) as process:
        _, err = process.communicate(timeout=2 * DEADLINE_SEC)
    assert process.returncode == 1
    last = err.decode().splitlines()[-1]
    assert "rank 1, step 3: hangs without a sign of life for 4 s" in last
    assert "stacks of all ranks are in r/hang" in last
    assert err.decode().count("sign of life") == 1
    starts = [event for event in read_events(tmp_path / "r/events.jsonl") if event["event"] == "start"]
    assert len(starts) == 1
    wait_gone(starts[0]["pids"])


def test_a_first_step_and_an_evaluation_may_take_longer(tmp_path):
    run_ranks(2, [HERE / "hang_run.py", "slow", tmp_path])
    assert not (tmp_path / "hang").exists()


def test_going_on_from_a_checkpoint_is_not_watched(tmp_path, monkeypatch):
    found = []
    go_on, watch = Archive.go_on, Watchdog.__enter__
    monkeypatch.setattr(Archive, "go_on", lambda *args: [found.append("goes on"), go_on(*args)][1])
    monkeypatch.setattr(Watchdog, "__enter__", lambda watchdog: [found.append("watches"), watch(watchdog)][1])
    trainer(run_dir=tmp_path).fit(steps=1)
    assert found == ["goes on", "watches"]


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_that_is_not_above_0_is_refused(limit):
    with pytest.raises(OptionError, match="hang_timeout_sec must be above 0, or None: got"):
        trainer(hang_timeout_sec=limit)


def sighting(rank, waits, place, step=17):
    return Sighting(rank, 1, step, "training", 30.0, waits, place, "")


def judged(*sightings, ranks=3):
    return judge({one.rank: one for one in sightings}, range(ranks), LIMIT_SEC)


BUSY = (False, "user code (loss.py:12, in loss)")
REDUCES = (True, "all_reduce")


def test_the_rank_that_waits_for_nobody_is_to_blame():
    rank, said = judged(sighting(0, *REDUCES), sighting(1, *BUSY), sighting(2, *REDUCES))
    assert rank == 1
    assert said == "in user code (loss.py:12, in loss) for 30 s, while ranks 0, 2 wait in all_reduce"


def test_of_ranks_that_all_wait_the_odd_one_is_to_blame():
    rank, said = judged(sighting(0, *REDUCES), sighting(1, *REDUCES), sighting(2, True, "barrier"))
    assert rank == 2
    assert said.startswith(
        "waiting in barrier for 30 s, while ranks 0, 1 wait in all_reduce: a collective was left out"
    )


def test_a_rank_without_a_word_is_to_blame_before_one_that_is_busy():
    rank, said = judged(sighting(0, *REDUCES), sighting(2, *BUSY))
    assert rank == 1
    assert said.endswith("while rank 0 waits in all_reduce and rank 2 is in user code (loss.py:12, in loss)")


def test_several_to_blame_are_all_named():
    rank, said = judged(sighting(0, *BUSY), sighting(1, *REDUCES), sighting(2, *BUSY))
    assert (rank, said.split(", while")[0]) == (0, "in user code (loss.py:12, in loss) for 30 s (rank 2 too)")


def installed_path(file):
    library = file.split("/")[0]
    if library not in ("torch", "headrace"):
        return file
    return str(Path(importlib.util.find_spec(library).origin).parents[1] / file)


def frames(*lines):
    """A stack of (file, function), outermost first; files of torch and headrace lie where these are installed."""
    return [traceback.FrameSummary(installed_path(file), 7, function) for file, function in lines]


@pytest.mark.parametrize(
    ("stack", "place"),
    [
        ([("train.py", "loss"), ("torch/nn/functional.py", "linear")], (False, "user code (train.py:7, in loss)")),
        ([("headrace/train/step.py", "step"), ("torch/autograd/graph.py", "_engine_run_backward")],
         (True, "the reduction of gradients")),
        ([("torch/autograd/graph.py", "_engine_run_backward"), ("mine.py", "backward")],
         (False, "user code (mine.py:7, in backward)")),
        ([("headrace/train/tally.py", "_read"), ("torch/cuda/streams.py", "synchronize")], (True, "work of its GPU")),
        ([("headrace/train/loop.py", "run"), ("headrace/load/client.py", "receive")], (False, "its loader")),
        ([("headrace/train/world.py", "gather"), ("torch/distributed/c10d_logger.py", "wrapper"),
          ("torch/distributed/distributed_c10d.py", "all_gather_object"),
          ("torch/distributed/distributed_c10d.py", "all_gather")], (True, "all_gather_object")),
        ([("loss.py", "loss"), ("torch/distributed/_functional_collectives.py", "wait_tensor"),
          ("torch/_ops.py", "__call__")], (True, "wait_tensor (loss.py:7, in loss)")),
        ([("loss.py", "loss"), ("torch/_ops.py", "__call__")], (False, "user code (loss.py:7, in loss)")),
        ([("loss.py", "loss"), ("headrace/train/tally.py", "wait")], (True, "all_reduce")),
        ([("headrace/train/step.py", "step"), ("headrace/train/parallel/compression/reducer.py", "go_on")],
         (True, "the reduction of gradients")),
        ([("headrace/train/guards/survey.py", "read"), ("headrace/train/guards/exchange.py", "read")],
         (True, "all_gather_into_tensor")),
        ([("headrace/train/saving.py", "wait"), ("headrace/train/background.py", "wait"), (threading.__file__, "join")],
         (True, "work in its background")),
        ([("headrace/train/loss_scale.py", "unscale"), ("headrace/train/loss_scale.py", "_divide")],
         (True, "the scaling of the loss")),
        ([("headrace/train/step.py", "step"), ("headrace/train/guards/update.py", "step_if")],
         (True, "the guarded step")),
        ([("headrace/train/checkpoint.py", "save")], (False, "checkpoint.py:7, in save")),
    ],
)  # fmt: skip
def test_where_a_stack_is(stack, place):
    assert place_of(frames(*stack)) == place
