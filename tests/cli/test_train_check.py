"""`headrace train --check`: what bounds a recipe, and what the best change was predicted to give and gave."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from headrace.cli.check import Subject, _feed_changes
from headrace.train.worker import Job, build_trainer
from waiting import DEADLINE_SEC, running, wait_for

RECIPE = """
import time
import numpy as np
import torch
import headrace as hr

def slow(sample):
    time.sleep({slow_sec})
    return {{"x": np.array([1.0, 2.0], np.float32), "y": 1}}

class Model(torch.nn.Linear):
    def state_dict(self, *args, **kwargs):
        if {save_sec}:
            time.sleep({save_sec})
        return super().state_dict(*args, **kwargs)

def loss(output, batch):
    time.sleep({step_sec})
    return torch.nn.functional.cross_entropy(output, batch["y"])

def recipe():
    torch.set_num_threads(1)
    stream = hr.Stream(hr.open("data"), epochs=None).map(slow)
    loader = hr.Loader(stream, batch_size=8, threads=1)
    return hr.Trainer(
        Model(2, 3), loss, loader, inputs=lambda batch: batch["x"], optimizer=hr.sgd(0.01), steps=1_000_000,
        checkpoint_every={every}, checkpoint_async=False, hang_timeout_sec=None, **{more},
    )
"""

WITH_MORE = """
from types import SimpleNamespace

def more():
    trainer = recipe()
    trainer.change(alarms=hr.Alarms())
    trainer.sinks = (SimpleNamespace(name="mine"),)
    return trainer
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    import headrace as hr

    folder = tmp_path_factory.mktemp("check")
    (folder / "files").mkdir()
    for number in range(64):
        (folder / "files" / f"{number}.txt").write_text("a")
    hr.pack(folder / "files", folder / "data")
    return folder


def command_of(folder, *arguments, **values):
    values = {"slow_sec": 0.0, "step_sec": 0.0, "save_sec": 0.0, "every": 1_000, "more": {}, **values}
    (folder / "checked.py").write_text(RECIPE.format(**values))
    return [sys.executable, "-m", "headrace.cli.main", "train", "checked.py", *arguments]


def checked(folder, *arguments, **values):
    command = command_of(folder, *arguments, **values)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=2 * DEADLINE_SEC)


def found(ran):
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_feed_that_is_slow_gets_the_change_that_was_measured_to_help(workplace):
    result = found(checked(workplace, "--check", "2", "--json", slow_sec=0.01, step_sec=0.01))
    assert result["bound"] == "input"
    assert result["change"].startswith("threads=")
    assert result["predicted"] > 1.5
    assert result["achieved"] > 1.3
    assert not list((workplace / "runs").glob("*"))


def test_checkpoints_that_are_slow_are_made_more_seldom(workplace):
    ran = checked(workplace, "--check", "2", step_sec=0.01, save_sec=0.1, every=2)
    assert ran.returncode == 0, ran.stderr
    assert "Checkpoint-bound" in ran.stdout
    assert "checkpoint" in ran.stdout.splitlines()[1]
    assert "times as many samples/s, achieved" in ran.stdout


def test_where_nothing_would_help_nothing_is_tried(workplace):
    result = found(checked(workplace, "--check", "2", "--json", step_sec=0.05))
    assert (result["bound"], result["change"], result["achieved"]) == ("compute", None, None)


@pytest.mark.parametrize("arguments", [("--run", "here"), ("--nnodes", "1:2", "--rdzv-endpoint", "127.0.0.1:1")])
def test_it_goes_with_no_folder_and_no_other_machine(workplace, arguments):
    ran = checked(workplace, "--check", "1", *arguments)
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines()[-1].count("--check trains on this machine in folders of its own") == 1


@pytest.mark.parametrize(
    "arguments",
    [("--sink", "prometheus"), ("--resume", "never"), ("--max-restarts", "1"), ("--requeue",), ("--profile", "3:5")],
)
def test_what_means_nothing_to_runs_of_seconds_is_refused(workplace, arguments):
    ran = checked(workplace, "--check", "1", *arguments)
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines()[-1].endswith(f"and removes them: leave {arguments[0]} away")


def test_nothing_is_left_outside_the_folders_of_the_runs(workplace, monkeypatch):
    more = {"checkpoints": str(workplace / "real"), "profile": (1, 3)}
    command_of(workplace, more=more)
    with open(workplace / "checked.py", "a") as recipe:
        recipe.write(WITH_MORE)
    monkeypatch.chdir(workplace)
    trainer = build_trainer(Job("checked.py:more", "r", "never", (), seconds=1.0))
    assert (trainer.sinks, trainer.profile) == ((), None)
    assert (trainer._options.checkpoints, trainer._options.alarms) == (None, None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_of_it_with_one_line(workplace, number):
    command = command_of(workplace, "--check", "1000", step_sec=0.01)
    runs = workplace / "runs"
    with running(command, cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: list(runs.glob("*/before/events.jsonl")), "a run")
        process.send_signal(number)
        _, err = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 1
    assert [line for line in err.splitlines() if line.startswith("headrace: ")] == [
        "headrace: interrupted; run the same again to go on"
    ]
    assert not list(runs.glob("*"))


@pytest.mark.parametrize(
    ("nproc", "options"),
    [(2, {}), (1, {"processes": 2}), (1, {"collate": dict}), (1, {"memory": "1GB"})],
)
def test_a_feed_that_is_not_measured_as_it_is_is_not_measured(workplace, monkeypatch, nproc, options):
    import headrace as hr

    loader = hr.Loader(hr.Stream(hr.open(workplace / "data")), batch_size=8, **options)
    monkeypatch.setattr("headrace.cli.check._loader", lambda subject: loader)
    monkeypatch.setattr("headrace.bench.measure", lambda *_, **__: pytest.fail("it was measured"))
    judged = SimpleNamespace(shares={"wait": 0.5})
    assert _feed_changes(Subject("r.py", (), nproc, 1.0), judged, SimpleNamespace(feeds=()), 100.0) == []
