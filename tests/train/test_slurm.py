"""Under Slurm: its signal checkpoints, stops, and puts the job back, by a program in the place of Slurm's scontrol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from processes import HERE

from headrace.errors import OptionError, TrainingError
from headrace.telemetry import read_events
from headrace.train import slurm
from waiting import DEADLINE_SEC, running, wait_for

RECIPE = """
import os, time
import problems as p, torch

def recipe():
    torch.set_num_threads(1)

    def loss(output, batch):
        if not os.path.exists("go"):
            time.sleep(0.05)
        return p.cross_entropy(output, batch)

    return p.trainer(loss=loss, steps=200)
"""


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """A program that notes what it was asked for; it refuses once there is a file `refuse`."""
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    refuses = f"[ ! -e {tmp_path}/refuse ] || {{ cat {tmp_path}/refuse >&2; exit 1; }}"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{refuses}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    return tmp_path / "asked"


@contextmanager
def started(folder, *options):
    """The command on a run that ends when the file `go` is there."""
    (folder / "small.py").write_text(RECIPE)
    command = [sys.executable, "-m", "headrace.cli.main", "train", "small.py", "--nproc", "1", "--requeue", *options]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running(command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, **pipes) as process:
        yield process


def wait_for_a_step(folder, process):
    path = folder / "r/events.jsonl"

    def made():
        assert process.poll() is None, process.communicate()
        return path.exists() and any(event["event"] == "step" for event in read_events(path))

    wait_for(made, "a step")


def test_its_signal_puts_the_job_back_and_the_next_turn_goes_on_to_the_end(tmp_path, scontrol):
    with started(tmp_path, "--run", "r") as process:
        wait_for_a_step(tmp_path, process)
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, err
    assert "with a checkpoint" in out
    assert out.endswith("; Slurm has the job in its queue again\n")
    assert scontrol.read_text() == "requeue 4711\n"
    (tmp_path / "go").touch()
    with started(tmp_path, "--run", "r") as process:
        out, err = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, err
    assert "(200 steps)" in out
    assert "resumed from step" in out
    assert scontrol.read_text() == "requeue 4711\n"  # a run that is done is not put back


def test_a_job_that_slurm_does_not_take_back_is_an_error_with_its_words(tmp_path, scontrol):
    (tmp_path / "refuse").write_text("Requested operation is presently disabled\n")
    with pytest.raises(TrainingError, match="does not put job 4711 back: Requested operation is presently disabled;"):
        slurm.requeue()


def test_of_several_tasks_the_first_asks(scontrol, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not slurm.requeue()
    assert not scontrol.exists()


def test_what_cannot_be_put_back_is_refused_before_anything_starts(tmp_path, scontrol, monkeypatch):
    with started(tmp_path) as process:
        _, err = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 2
    assert "add --run DIR" in err
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionError, match="needs Slurm's scontrol"):
        slurm.check_requeue()
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(OptionError, match="SLURM_JOB_ID is not set"):
        slurm.check_requeue()
