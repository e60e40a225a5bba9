"""`headrace train --check`: what bounds a recipe, and what the best change was predicted to give and gave."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from waiting import DEADLINE_SEC

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
        checkpoint_every=2, checkpoint_async=False, hang_timeout_sec=None,
    )
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


def checked(folder, *arguments, **seconds):
    values = {"slow_sec": 0.0, "step_sec": 0.0, "save_sec": 0.0, **seconds}
    (folder / "checked.py").write_text(RECIPE.format(**values))
    command = [sys.executable, "-m", "headrace.cli.main", "train", "checked.py", *arguments]
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
    ran = checked(workplace, "--check", "2", step_sec=0.01, save_sec=0.1)
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
