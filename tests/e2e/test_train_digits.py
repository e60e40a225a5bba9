"""The digits recipe on packed digits: from PNG files to a trained model, with the real loader."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import headrace as hr
from headrace.telemetry import read_events
from headrace.train.recipe import RecipeTarget, load_recipe
from waiting import running, wait_for

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
    learn, calls = broken._options.loss, iter(range(1, 99))

    def fail_in_step_27(output, batch):
        if next(calls) == 27:
            raise RuntimeError("gone")
        return learn(output, batch)

    broken._options = replace(broken._options, loss=fail_in_step_27)
    with pytest.raises(RuntimeError, match="gone"):
        broken.fit()
    resumed = make(digits, tmp_path / "broken", epochs=2, seed=0)
    result = resumed.fit()
    assert result.resumed_from.name == "step-00000020"
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for trainer in (straight, broken, resumed):
        trainer.loader.close()


HELD = """
import itertools, os, time
from dataclasses import replace
import digits, torch

def recipe(*, data: str, epochs: int, checkpoint_every: int):
    trainer = digits.recipe(data=data, epochs=epochs, checkpoint_every=checkpoint_every)
    learn, steps = trainer._options.loss, itertools.count(1)

    def loss(output, batch):
        if torch.is_grad_enabled() and next(steps) == 61:
            while not os.path.exists("go"):
                time.sleep(0.01)
        return learn(output, batch)

    trainer._options = replace(trainer._options, loss=loss)
    return trainer
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_one_killed_reach_97_percent(digits, tmp_path):
    """The recipe, held in step 61 until the kill has come."""
    shutil.copy(ROOT / "recipes/digits.py", tmp_path)
    (tmp_path / "held.py").write_text(HELD)
    command = [sys.executable, "-m", "headrace.cli.main", "train", "held.py", "--nproc", "2"]
    options = ["--set", f"data={digits}", "--set", "epochs=12", "--set", "checkpoint_every=40", "--run", "r", "--json"]
    events = tmp_path / "r/events.jsonl"
    with running([*command, *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:

        def is_held():
            assert process.poll() is None
            return events.exists() and sum(event["event"] == "step" for event in read_events(events)) == 60

        wait_for(is_held, "60 steps", 300)
        os.kill(next(read_events(events))["pids"][1], signal.SIGKILL)
        (tmp_path / "go").touch()
        out, _ = process.communicate(timeout=500)
    found = json.loads(out.splitlines()[-1])
    assert process.returncode == 0
    assert found["metrics"]["accuracy"] >= 0.97
    assert (found["restarts"], found["steps"]) == (1, 12 * 22)
    assert found["resumed_from"] == "r/checkpoints/step-00000040"
