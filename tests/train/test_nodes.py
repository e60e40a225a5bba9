"""Machines come and go: the run goes on with those that are there, over the same global batches."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from problems import exact, weights
from processes import HERE

from headrace.cli.main import app
from headrace.cli.output import run as run_cli
from headrace.errors import OptionError
from headrace.telemetry import read_events
from headrace.train.nodes import Nodes
from waiting import DEADLINE_SEC, family, wait_for

STEPS = 400
RECIPE = f"""
import os, time
import problems as p, torch

def recipe():
    torch.set_num_threads(1)

    def loss(output, batch):
        if not os.path.exists("go"):
            time.sleep(0.5)
        return p.cross_entropy(output, batch)

    return p.exact(loss=loss, steps={STEPS}, checkpoint_every=4)
"""


@contextmanager
def node(folder, port):
    """The command on one of two machines. It and its processes are gone after the block."""
    command = [sys.executable, "-m", "headrace.cli.main", "train", "small.py", "--nproc", "1", "--run", "r"]
    options = ["--nnodes", "1:2", "--rdzv-endpoint", f"127.0.0.1:{port}"]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    with (
        open(folder / "node.log", "a") as log,
        subprocess.Popen(
            [*command, *options], cwd=folder, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log
        ) as process,
    ):
        try:
            yield process
        finally:
            kill(process)


def kill(process):
    """As a machine that loses its power."""
    for pid in reversed(family(process.pid)) if process.poll() is None else []:
        os.kill(pid, signal.SIGKILL)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def is_open(port):
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def wait_for_world(folder, size, past, *processes):
    """Wait until the run's newest attempt, one after `past` others, has `size` ranks and a checkpoint."""

    def under_way():
        for process in processes:
            assert process.poll() is None, (folder / "node.log").read_text()
        path = folder / "r/events.jsonl"
        events = list(read_events(path)) if path.exists() else []
        starts = [number for number, event in enumerate(events) if event["event"] == "start"]
        return (
            len(starts) > past
            and events[starts[-1]]["world_size"] == size
            and any(event["event"] == "checkpoint" for event in events[starts[-1] :])
            and len(starts)
        )

    return wait_for(under_way, f"a checkpoint of {size} ranks")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_machines_die_come_and_leave_and_the_run_ends_with_the_same_weights(tmp_path):
    (tmp_path / "small.py").write_text(RECIPE)
    port = free_port()
    with node(tmp_path, port) as first:
        wait_for(lambda: is_open(port), "the first machine to be where all meet, since it stays")
        with node(tmp_path, port) as second:
            attempts = wait_for_world(tmp_path, 2, 0, first, second)
            kill(second)
        attempts = wait_for_world(tmp_path, 1, attempts, first)
        with node(tmp_path, port) as third:
            attempts = wait_for_world(tmp_path, 2, attempts, first, third)
            third.send_signal(signal.SIGTERM)
            assert third.wait(DEADLINE_SEC) == 0, (tmp_path / "node.log").read_text()
            wait_for_world(tmp_path, 1, attempts, first)
        (tmp_path / "go").touch()
        assert first.wait(DEADLINE_SEC) == 0, (tmp_path / "node.log").read_text()
    undisturbed, disturbed = exact(), exact(run_dir=tmp_path / "r")
    undisturbed.fit(steps=STEPS)
    assert disturbed.fit(steps=STEPS).resumed_from.name == f"step-{STEPS:08d}"
    torch.testing.assert_close(weights(disturbed.model), weights(undisturbed.model), rtol=1e-6, atol=1e-6)


def test_what_the_options_mean():
    assert Nodes.of("1", None) == Nodes()
    assert Nodes.of("2", "host:29400") == Nodes(2, 2, "host:29400")
    assert Nodes.of("1:4", "host:29400") == Nodes(1, 4, "host:29400")
    assert Nodes.of("1:4", "127.0.0.1:29400").here
    assert not Nodes.of("1:4", "host:29400").here


@pytest.mark.parametrize(
    ("nnodes", "endpoint", "message"),
    [
        ("0", None, "--nnodes must be a number of machines"),
        ("4:2", "host:1", "--nnodes must be a number of machines"),
        ("2:", "host:1", "--nnodes must be a number of machines"),
        ("1:2", None, "add --rdzv-endpoint"),
        ("1", "host:1", "goes with --nnodes above 1"),
        ("2", "host", "must be HOST:PORT"),
    ],
)
def test_what_cannot_work_is_refused(nnodes, endpoint, message):
    with pytest.raises(OptionError, match=message):
        Nodes.of(nnodes, endpoint)


@pytest.mark.parametrize("resume", ["never", "other/run"])
@pytest.mark.parametrize("nnodes", ["2", "1:2"])
def test_several_machines_go_on_from_the_run_itself_only(nnodes, resume, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text("def recipe(): ...")
    options = ["--nnodes", nnodes, "--rdzv-endpoint", "host:1", "--run", "r", "--resume", resume]
    assert run_cli(app, ["train", "r.py", *options]) != 0
    assert f"--resume must be auto: got {resume!r}" in capsys.readouterr().err
    assert not (tmp_path / "r").exists(), "no work was begun"
    Nodes.of(nnodes, "host:1").check_resume("auto")
    Nodes().check_resume(resume)
