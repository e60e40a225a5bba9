"""`headrace train --sink` and `headrace send`: real processes, and what others' readers find."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from headrace.telemetry import read_events
from waiting import DEADLINE_SEC, running, wait_for

HELPERS = Path(__file__).parents[1] / "train"

RECIPE = """
import os, time
import problems as p
import torch
import headrace as hr

class Loss:
    steps = 0
    def __call__(self, output, batch):
        self.steps += torch.is_grad_enabled()
        while self.steps == 5 and not os.path.exists("go"):
            time.sleep(0.01)
        return p.cross_entropy(output, batch)

def recipe():
    torch.set_num_threads(1)
    return p.trainer(loss=Loss(), steps=12, sinks=[hr.TensorBoard("board", every_sec=0)])
"""


def headrace(folder, *arguments):
    command = [sys.executable, "-m", "headrace.cli.main", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_SEC, check=False)


@pytest.fixture
def workplace(tmp_path):
    for name in ("problems.py", "memory_loader.py"):
        shutil.copy(HELPERS / name, tmp_path)
    (tmp_path / "small.py").write_text(RECIPE)
    return tmp_path


def where(run_dir):
    if not (run_dir / "events.jsonl").exists():
        return {}
    found = read_events(run_dir / "events.jsonl")
    return {event["sink"]: event.get("where") for event in found if event["event"] == "sink"}


def scraped(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def test_a_run_is_seen_while_it_goes_on_and_its_whole_course_afterwards(workplace):
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'headrace[tensorboard]'")
    pytest.importorskip("prometheus_client", reason="needs prometheus_client: pip install 'headrace[prometheus]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = [sys.executable, "-m", "headrace.cli.main", "train", "small.py", "--nproc", "2", "--run", "r"]
    with running([*command, "--sink", "prometheus:0"], cwd=workplace, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = wait_for(lambda: len(found := where(workplace / "r")) == 2 and found, "both sinks are on")
            wait_for(lambda: "headrace_step 4.0\n" in scraped(told["prometheus"]), "four steps are shown")
        finally:
            (workplace / "go").touch()
        said = process.communicate(timeout=DEADLINE_SEC)[1]
        assert process.returncode == 0, said
    events = list(read_events(workplace / "r/events.jsonl"))
    assert [event["state"] for event in events if event["event"] == "sink"] == ["on", "on"]  # of rank 0 alone
    assert next(event for event in events if event["event"] == "start")["config"]["sinks"] == [
        "tensorboard",
        "prometheus",
    ]
    board = EventAccumulator(str(workplace / "board"))
    board.Reload()
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert [one.value for one in board.Scalars("train/loss")] == pytest.approx(losses)
    assert len(losses) == 12


def test_a_sink_that_cannot_work_is_refused_before_anything_starts(workplace):
    for verb in (("train", "small.py"), ("send", ".")):
        done = headrace(workplace, *verb, "--sink", "grafana")
        assert done.returncode == 2
        assert done.stderr.startswith("headrace: a sink must be one of tensorboard[:DIR], ")
        assert done.stderr.count("\n") == 1
    assert not (workplace / "runs").exists()


def test_send_says_what_went_where(tmp_path):
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'headrace[tensorboard]'")
    (tmp_path / "events.jsonl").write_text('{"event": "step", "time": 1.0, "step": 1, "loss": 0.5}\n')
    done = headrace(tmp_path, "send", ".", "--sink", "tensorboard")
    assert (done.returncode, done.stdout) == (0, "1 events to tensorboard: tensorboard\n"), done.stderr
    done = headrace(tmp_path, "send", ".", "--sink", "tensorboard", "--json")
    sent = [{"sink": "tensorboard", "where": "tensorboard", "events": 0}]
    assert json.loads(done.stdout) == {"path": ".", "sent": sent}
    assert headrace(tmp_path, "send", ".").stderr == ("headrace: say where to: --sink tensorboard, mlflow or wandb\n")
