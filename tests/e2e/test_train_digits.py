"""The digits recipe on packed digits: from PNG files to a trained model, with the real loader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import headrace as hr
from headrace.telemetry import read_events
from headrace.train.recipe import RecipeTarget, load_recipe

ROOT = Path(__file__).parents[2]
pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Packed shards of the digits, training and test split apart."""
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, ROOT / "recipes/data.py", "digits", folder / "png"], check=True)
    hr.pack(folder / "png", folder / "shards", split={"train": 0.8, "test": 0.2})
    return folder / "shards"


def make(digits, run_dir, **settings):
    torch.set_num_threads(1)
    recipe = load_recipe(RecipeTarget.parse(str(ROOT / "recipes/digits.py")))
    trainer = recipe(data=str(digits), width=8, checkpoint_every=10, **settings)
    trainer.run_dir = run_dir
    return trainer


def test_an_interrupted_run_ends_with_the_bits_of_a_straight_one(digits, tmp_path):
    """Real shards, keyed augmentation, shuffling by epoch: only the loader's state says where to go on."""
    straight = make(digits, tmp_path / "straight", epochs=2)
    straight.fit()
    broken = make(digits, tmp_path / "broken", epochs=2)
    learn, calls = broken._loss, iter(range(1, 99))

    def fail_in_step_27(output, batch):
        if next(calls) == 27:
            raise RuntimeError("gone")
        return learn(output, batch)

    broken._loss = fail_in_step_27
    with pytest.raises(RuntimeError, match="gone"):
        broken.fit()
    resumed = make(digits, tmp_path / "broken", epochs=2, seed=0)
    result = resumed.fit()
    assert result.resumed_from.name == "step-00000020"
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for trainer in (straight, broken, resumed):
        trainer.loader.close()


@pytest.mark.slow
def test_two_processes_one_killed_reach_97_percent(digits, tmp_path):
    command = [sys.executable, "-m", "headrace.cli.main", "train", ROOT / "recipes/digits.py", "--nproc", "2"]
    options = ["--set", f"data={digits}", "--set", "epochs=12", "--set", "checkpoint_every=40", "--run", "r", "--json"]
    process = subprocess.Popen([*command, *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    events = tmp_path / "r/events.jsonl"
    deadline = time.monotonic() + 100
    while not (events.exists() and sum(event["event"] == "step" for event in read_events(events)) >= 60):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(next(read_events(events))["pids"][1], signal.SIGKILL)
    out, _ = process.communicate(timeout=150)
    found = json.loads(out.splitlines()[-1])
    assert process.returncode == 0
    assert found["metrics"]["accuracy"] >= 0.97
    assert (found["restarts"], found["steps"]) == (1, 12 * 22)
    assert found["resumed_from"].startswith("r/checkpoints/step-")
