"""Steps of a run are traced when they are due, or when a signal asks; the run itself is what it was."""

from __future__ import annotations

import gzip
import json
import os
import signal

import pytest
import torch
from memory_loader import MemoryLoader
from problems import cross_entropy, fields, trainer, weights

from headrace.errors import OptionError
from headrace.report.runlog import PARTS
from headrace.telemetry import read_events
from headrace.train import profile_summary
from headrace.train.clock import Clock
from headrace.train.profiling.tracer import Tracer


def traced(path):
    """Names of steps, and of the parts of each, in their order."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    ranges = sorted((e["ts"], e["dur"], e["name"]) for e in events if e.get("cat") == "user_annotation")
    steps = [one for one in ranges if one[2].startswith("ProfilerStep#")]
    return {
        name: [part.removeprefix("headrace.") for ts, _, part in ranges if _is_in(begin, dur, ts, part)]
        for begin, dur, name in steps
    }


def _is_in(begin, dur, ts, name):
    return begin <= ts < begin + dur and name.startswith("headrace.")


def files(run_dir):
    return sorted(path.name for path in (run_dir / "profile").glob("*"))


def at_step(step, act):
    """A loss that acts in this step, counted from 1."""
    made = 0

    def loss(output, batch):
        nonlocal made
        made += torch.is_grad_enabled()
        if made == step and torch.is_grad_enabled():
            act()
        return cross_entropy(output, batch)

    return loss


def test_the_steps_that_were_asked_for_are_traced_with_the_parts_of_the_loop(tmp_path, capfd):
    held_out = MemoryLoader(fields(20, seed=2), 12, shuffle=False, drop_last=False)
    made = trainer(run_dir=tmp_path, profile=(7, 10), evaluate=held_out, checkpoint_every=9)
    made.fit(steps=12)
    assert files(tmp_path) == ["rank0-steps7-9.json.gz", "rank0-steps7-9.summary.json"]
    path = tmp_path / "profile/rank0-steps7-9.json.gz"
    steps = traced(path)
    assert list(steps) == ["ProfilerStep#7", "ProfilerStep#8", "ProfilerStep#9"]
    for parts in steps.values():
        assert parts[:2] == ["rest", "wait"]
        assert {"forward", "backward", "optimizer"} <= set(parts)
        assert parts[-1] == "rest"
    assert "evaluation" in steps["ProfilerStep#8"]  # an epoch has 8
    assert "checkpoint" in steps["ProfilerStep#9"]
    assert not {"evaluation", "checkpoint"} & set(steps["ProfilerStep#7"])

    summary = json.loads((tmp_path / "profile/rank0-steps7-9.summary.json").read_text())
    assert summary == profile_summary(path)
    assert (summary["rank"], summary["first_step"], summary["last_step"], summary["device"]) == (0, 7, 9, "cpu")
    assert any(one["name"] == "aten::addmm" for one in summary["operators"])
    assert summary["parts_sec"].keys() == {part for parts in steps.values() for part in parts}
    assert f"profile {path}: rank 0, steps 7 to 9, " in capfd.readouterr().err
    (event,) = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "profile"]
    assert (event["first_step"], event["step"], event["path"]) == (7, 9, str(path))
    assert event["sentence"] == summary["sentence"]


def test_a_run_that_is_profiled_is_the_same_run(tmp_path):
    plain, watched = trainer(), trainer(run_dir=tmp_path, profile=(1, 4))
    plain.fit(steps=6)
    watched.fit(steps=6)
    steps = traced(tmp_path / "profile/rank0-steps1-3.json.gz")
    assert list(steps) == ["ProfilerStep#1", "ProfilerStep#2", "ProfilerStep#3"]
    assert "wait" in steps["ProfilerStep#1"]
    assert "evaluation" not in steps["ProfilerStep#1"]
    assert all(torch.equal(weights(plain.model)[name], value) for name, value in weights(watched.model).items())
    steps = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "step"]
    parts = [sum(event[f"{part}_sec"] for part in PARTS) for event in steps]
    assert parts == pytest.approx([event["sec"] for event in steps])


def test_a_signal_asks_for_the_ten_steps_that_follow(tmp_path):
    def ask():
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR2)  # one is enough

    made = trainer(run_dir=tmp_path, loss=at_step(4, ask))
    made.fit(steps=20)
    assert files(tmp_path) == ["rank0-steps5-14.json.gz", "rank0-steps5-14.summary.json"]
    assert len(traced(tmp_path / "profile/rank0-steps5-14.json.gz")) == 10
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_a_process_that_means_something_else_by_the_signal_keeps_it(tmp_path):
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append(1))
    try:
        trainer(run_dir=tmp_path, loss=at_step(2, lambda: os.kill(os.getpid(), signal.SIGUSR2))).fit(steps=4)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [1]
    assert not (tmp_path / "profile").exists()


def test_of_a_run_that_fails_the_whole_steps_are_there(tmp_path):
    def fail():
        raise ValueError("a digit too many")

    with pytest.raises(ValueError, match="a digit too many"):
        trainer(run_dir=tmp_path, loss=at_step(5, fail), profile=(3, 9)).fit(steps=12)
    summary = profile_summary(tmp_path / "profile/rank0-steps3-4.json.gz")
    assert summary["last_step"] == 4
    with pytest.raises(ValueError, match="a digit too many"):
        trainer(run_dir=tmp_path / "other", loss=at_step(5, fail), profile=(5, 9)).fit(steps=12)
    assert not (tmp_path / "other/profile").exists()


def test_steps_that_were_made_before_are_not_made_again_for_a_profile(tmp_path, caplog):
    trainer(run_dir=tmp_path).fit(steps=4)
    trainer(run_dir=tmp_path, profile=(3, 6)).fit(steps=8)
    assert "no profile: step 3 was made before, and the run goes on at 5" in caplog.text
    assert not (tmp_path / "profile").exists()


def test_another_profiler_at_work_costs_the_profile_and_not_the_run(tmp_path, caplog):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as other:
        assert trainer(run_dir=tmp_path, profile=(2, 4)).fit(steps=6).steps == 6
    assert "no profile: another profiler is at work in this process" in caplog.text
    assert sum(one.count for one in other.key_averages() if one.key == "aten::addmm") == 12  # of all six steps


def test_a_profile_that_cannot_be_written_is_a_line(tmp_path, caplog):
    (tmp_path / "profile").write_text("in the way")
    assert trainer(run_dir=tmp_path, profile=(2, 4)).fit(steps=6).steps == 6
    assert f"the profile cannot be written to {tmp_path / 'profile'}: " in caplog.text


def test_steps_that_the_run_does_not_have_are_refused_before_it_begins(tmp_path):
    made = trainer(run_dir=tmp_path, profile=(3, 9))
    with pytest.raises(OptionError, match="profile must be steps of the run, which has 7: got 3:9"):
        made.fit(steps=7)
    assert made.step == 0
    with pytest.raises(OptionError, match="profile needs a place for what the run keeps: set run_dir"):
        trainer(profile=(3, 9)).fit(steps=10)
    with pytest.raises(OptionError, match="profile must be two steps"):
        trainer(profile=(9, 3))


def test_the_clock_is_its_own_but_while_a_profile_is_due(tmp_path):
    clock, done = Clock(), 0
    with Tracer(tmp_path, 0, clock, lambda: done, None, print):
        assert vars(clock).keys() == vars(Clock()).keys()
        os.kill(os.getpid(), signal.SIGUSR2)
        assert "lap" in vars(clock)
        for done in range(1, 13):  # noqa: B007 - completed steps
            clock.lap("wait")
            clock.next_step()
        assert vars(clock).keys() == vars(Clock()).keys()
