"""SIGTERM: all ranks stop after the same step, with a checkpoint."""

from __future__ import annotations

import os
import signal

import pytest
from problems import trainer
from processes import HERE, ended, started_ranks

from headrace.telemetry import read_events
from waiting import wait_for


def kinds(run_dir):
    path = run_dir / "events.jsonl"
    return [event["event"] for event in read_events(path)] if path.exists() else []


def wait_for_steps(run_dir, processes):
    """Wait until a run is under way."""

    def under_way():
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        return kinds(run_dir).count("step") >= 3

    wait_for(under_way, "three steps")


@pytest.mark.parametrize("told", [0, 1])
def test_whichever_rank_is_told_all_stop_after_the_same_step(tmp_path, told):
    with started_ranks(2, [HERE / "slow_run.py", tmp_path]) as processes:
        wait_for_steps(tmp_path, processes)
        processes[told].send_signal(signal.SIGTERM)
        found = ended(processes)
    assert [code for code, _, _ in found] == [0, 0]
    assert found[0][1] == found[1][1]
    steps, reason = found[0][1].split()
    assert reason == "sigterm"
    stop = list(read_events(tmp_path / "events.jsonl"))[-1]
    assert (stop["event"], stop["step"], stop["reason"]) == ("stop", int(steps), "sigterm")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{int(steps):08d}"]


def test_a_stopped_run_goes_on_and_the_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def loss(output, batch):
        if made.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return output.square().mean()

    made = trainer(loss=loss, run_dir=tmp_path)
    result = made.fit(steps=20)
    assert (result.steps, result.stopped) == (5, "sigterm")
    assert signal.getsignal(signal.SIGTERM) is before
    again = trainer(loss=lambda output, batch: output.square().mean(), run_dir=tmp_path).fit(steps=20)
    assert (again.steps, again.stopped, again.resumed_from.name) == (20, None, "step-00000005")


def test_a_killed_peer_ends_the_others(tmp_path):
    with started_ranks(2, [HERE / "slow_run.py", tmp_path]) as processes:
        wait_for_steps(tmp_path, processes)
        processes[1].kill()
        assert [code for code, _, _ in ended(processes)] == [1, -signal.SIGKILL]
