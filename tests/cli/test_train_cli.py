"""`headrace train`: real processes, a small recipe, and what goes wrong in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headrace.telemetry import read_events

HELPERS = Path(__file__).parents[1] / "train"

RECIPE = """
import os, time
import problems as p
from memory_loader import MemoryLoader
import torch
import headrace as hr

FAIL = {fail!r}

class Loss:
    def __init__(self, pause):
        self.calls, self.pause = 0, pause
    def __call__(self, output, batch):
        self.calls += 1
        time.sleep(self.pause)
        if FAIL == "error" and self.calls == 3 and os.environ["RANK"] == "1":
            raise ValueError("a digit too many")
        return p.cross_entropy(output, batch)

def recipe(*, lr: float = 0.1, steps: int = 30, pause: float = 0.0, mesh: str = "dp"):
    torch.set_num_threads(1)
    held_out = MemoryLoader(p.fields(50, seed=2), 12, shuffle=False, drop_last=False)
    return p.trainer(loss=Loss(pause), steps=steps, checkpoint_every=5, mesh=mesh, optimizer=hr.sgd(lr),
                     evaluate=held_out, metrics={{"accuracy": p.correct}})
"""


@pytest.fixture
def workplace(tmp_path):
    """A folder with a recipe and what it imports."""
    for name in ("problems.py", "memory_loader.py"):
        shutil.copy(HELPERS / name, tmp_path)
    write_recipe(tmp_path)
    return tmp_path


def write_recipe(folder, fail=""):
    (folder / "small.py").write_text(RECIPE.format(fail=fail))


def command(*arguments):
    return [sys.executable, "-m", "headrace.cli.main", "train", *map(str, arguments)]


def train(folder, *arguments, recipe="small.py"):
    return subprocess.run(command(recipe, *arguments), cwd=folder, capture_output=True, text=True, timeout=120)


def start(folder, *arguments):
    return subprocess.Popen(
        command("small.py", *arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_steps(run_dir, number, timeout=60):
    """The pids of the ranks, once the run has made so many steps."""
    deadline = time.monotonic() + timeout
    path = run_dir / "events.jsonl"
    while time.monotonic() < deadline:
        events = list(read_events(path)) if path.exists() else []
        if sum(event["event"] == "step" for event in events) >= number:
            return [event["pids"] for event in events if event["event"] == "start"][-1]
        time.sleep(0.05)
    raise AssertionError("the run does not get on")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def one_line(text):
    """The last line of stderr, which is all there may be besides the announcement."""
    lines = text.strip().splitlines()
    assert [line for line in lines if line.startswith("headrace: ")] == lines[-1:], text
    assert "Traceback" not in text
    return lines[-1]


def test_two_processes_train_and_the_last_line_says_what_came_of_it(workplace):
    done = train(workplace, "--nproc", 2, "--set", "lr=0.2", "--mesh", "dp=2")
    assert done.returncode == 0, done.stderr
    line = r"test accuracy \d+\.\d % after 3\.75 epochs \(30 steps\) in \d+ s; run runs/small-1\n"
    assert re.fullmatch(line, done.stdout)
    start_event = next(read_events(workplace / "runs/small-1/events.jsonl"))
    assert start_event["world_size"] == 2
    assert start_event["config"]["settings"] == {"lr": 0.2, "mesh": "dp=2"}
    assert not any(alive(pid) for pid in start_event["pids"])


def test_json_has_the_keys_that_scripts_rely_on_and_the_next_run_has_its_own_folder(workplace):
    (workplace / "runs/small-1").mkdir(parents=True)
    done = train(workplace, "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() >= {"run_dir", "steps", "epochs", "loss", "metrics", "samples_per_sec", "au", "verdict"}
    assert (found["run_dir"], found["steps"], found["restarts"], found["resumed_from"]) == ("runs/small-2", 30, 0, None)
    assert 0 < found["metrics"]["accuracy"] < 1
    assert found["samples_per_sec"] > 0


def test_a_killed_rank_restarts_the_run_from_its_last_checkpoint(workplace):
    process = start(workplace, "--nproc", 2, "--set", "pause=0.05", "--set", "steps=40", "--run", "r")
    pids = wait_for_steps(workplace / "r", 12)
    os.kill(pids[1], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert re.search(r"\(40 steps\) in \d+ s; 1 restart, resumed from step 1\d; run r", out) or "step 5" in out
    starts = [event for event in read_events(workplace / "r/events.jsonl") if event["event"] == "start"]
    assert [event["attempt"] for event in starts] == [0, 1]
    assert starts[1]["step"] % 5 == 0
    assert not any(alive(pid) for event in starts for pid in event["pids"])


def test_a_signal_checkpoints_and_ends_and_the_same_command_goes_on(workplace):
    options = ("--nproc", 2, "--run", "r", "--set", "pause=0.05")
    process = start(workplace, *options)
    pids = wait_for_steps(workplace / "r", 7)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    stopped = re.fullmatch(
        r"stopped at step (\d+) of 30, with a checkpoint; go on with: "
        r"headrace train small.py --nproc 2 --run r --set pause=0.05\n",
        out,
    )
    assert stopped, out
    assert not any(alive(pid) for pid in pids)
    done = train(workplace, *options[:4])
    assert "(30 steps) in" in done.stdout
    assert f"resumed from step {stopped[1]}; run r" in done.stdout
    newest = max((workplace / "r/checkpoints").iterdir())
    elsewhere = train(workplace, "--resume", newest, "--run", "other", "--set", "steps=40", "--json")
    assert json.loads(elsewhere.stdout.splitlines()[-1])["steps"] == 40, "all steps, not those of this folder"


def test_a_refused_second_launch_leaves_the_first_alone(workplace):
    """It says so in one line, and the first one's restart after a crash is not disturbed."""
    options = ("--nproc", 2, "--set", "pause=0.05", "--set", "steps=60", "--run", "r")
    process = start(workplace, *options)
    pids = wait_for_steps(workplace / "r", 7)
    second = train(workplace, *options)
    assert second.returncode == 1
    assert "r is in use by a run that is under way" in one_line(second.stderr)
    os.kill(pids[1], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "1 restart" in out


def test_workers_end_with_a_checkpoint_when_the_command_is_killed(workplace):
    process = start(workplace, "--nproc", 2, "--set", "pause=0.05", "--set", "steps=400", "--run", "r")
    pids = wait_for_steps(workplace / "r", 7)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)
    events = list(read_events(workplace / "r/events.jsonl"))
    assert events[-1]["event"] == "stop"
    assert events[-1]["step"] < 400


def test_a_hang_up_means_the_same_as_a_scheduler_s_signal(workplace):
    process = start(workplace, "--nproc", 2, "--set", "pause=0.05", "--set", "steps=400", "--run", "r")
    wait_for_steps(workplace / "r", 7)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "with a checkpoint; go on with:" in out


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
        ("import os\ndef recipe():\n    os._exit(0)\n", "ended before training began"),
    ],
)
def test_a_recipe_that_ends_the_process_is_a_failure(workplace, code, message):
    (workplace / "small.py").write_text(code)
    done = train(workplace, "--run", "r")
    assert done.returncode == 1
    assert message in one_line(done.stderr)


def test_a_folder_that_takes_no_files_is_one_line(workplace):
    done = train(workplace, "--run", "/proc/sys")
    assert done.returncode == 1
    assert "cannot write to the run's folder /proc/sys" in one_line(done.stderr)


def test_an_error_on_one_rank_is_the_one_shown_and_all_ranks_are_gone(workplace):
    write_recipe(workplace, fail="error")
    began = time.monotonic()
    done = train(workplace, "--nproc", 2, "--run", "r", "--json")
    assert done.returncode == 1
    assert one_line(done.stderr) == "headrace: rank 1, step 3: ValueError: a digit too many"
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert error == {"type": "TrainingError", "message": "rank 1, step 3: ValueError: a digit too many"}
    starts = [event for event in read_events(workplace / "r/events.jsonl") if event["event"] == "start"]
    assert len(starts) == 1
    assert not any(alive(pid) for pid in starts[0]["pids"])
    assert time.monotonic() - began < 60
    assert "line" in (workplace / "r/errors/rank1.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "rate=1"], 2, "the recipe has no setting 'rate': it has lr: float = 0.1; steps: int = 30"),
        (["--set", "lr=fast"], 2, "setting lr must be of type float: got 'fast'"),
        (["--set", "lr"], 2, "a setting is given as name=value: got 'lr'"),
        (["--nproc", "0"], 2, "nproc"),
        (["--mesh", "tp=2"], 2, "rank 0: mesh must be 'dp' or 'dp=N'"),
        (["--resume", "nowhere"], 1, "nowhere is neither of them"),
    ],
)
def test_bad_usage_is_one_line(workplace, arguments, code, message):
    done = train(workplace, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in one_line(done.stderr)


def test_a_recipe_with_a_syntax_error_is_told_with_its_line_before_anything_starts(workplace):
    (workplace / "small.py").write_text("import headrace as hr\n\ndef recipe(:\n")
    done = train(workplace)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "headrace: small.py, line 3: invalid syntax\n"
    assert not (workplace / "runs").exists()


def test_debug_shows_where_in_the_recipe(workplace):
    write_recipe(workplace, fail="error")
    done = train(workplace, "--nproc", 2, "--debug")
    assert done.returncode == 1
    assert 'small.py", line' in done.stderr
    assert 'raise ValueError("a digit too many")' in done.stderr
