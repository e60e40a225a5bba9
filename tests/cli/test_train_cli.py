"""`headrace train`: real processes, a small recipe, and what goes wrong in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from headrace.telemetry import read_events
from waiting import DEADLINE_SEC, alive, running, wait_for, wait_gone

HELPERS = Path(__file__).parents[1] / "train"

RECIPE = """
import os, time
import problems as p
from memory_loader import MemoryLoader
import torch
import headrace as hr

FAIL = {fail!r}

class Loss:
    def __init__(self, pause, hold):
        self.steps, self.pause, self.hold = 0, pause, hold
    def __call__(self, output, batch):
        self.steps += torch.is_grad_enabled()
        time.sleep(self.pause)
        while self.steps == self.hold and not os.path.exists("go"):
            time.sleep(0.01)
        if FAIL == "error" and self.steps == 3 and os.environ["RANK"] == "1":
            raise ValueError("a digit too many")
        return p.cross_entropy(output, batch)

def recipe(*, lr: float = 0.1, steps: int = 30, pause: float = 0.0, hold: int = 0, mesh: str = "dp"):
    torch.set_num_threads(1)
    held_out = MemoryLoader(p.fields(50, seed=2), 12, shuffle=False, drop_last=False)
    return p.trainer(loss=Loss(pause, hold), steps=steps, checkpoint_every=5, mesh=mesh, optimizer=hr.sgd(lr),
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
    return subprocess.run(command(recipe, *arguments), cwd=folder, capture_output=True, text=True, timeout=DEADLINE_SEC)


# With pause=0.05 and ENDLESS a run goes on until it is stopped; with hold=N each rank waits in step N until `let_go`.
ENDLESS = ("--set", "pause=0.05", "--set", "steps=1000000")


@contextmanager
def started(folder, *arguments):
    """The command under way. It is gone after the block, and its ranks end by themselves."""
    options = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running(command("small.py", *arguments), **options) as process:
        try:
            yield process
        finally:
            let_go(folder)


def let_go(folder):
    (folder / "go").touch()


def wait_for_steps(process, run_dir, number):
    """The pids of the ranks, once the run has made so many steps."""
    path = run_dir / "events.jsonl"

    def pids():
        assert process.poll() is None, process.communicate()
        events = list(read_events(path)) if path.exists() else []
        if sum(event["event"] == "step" for event in events) >= number:
            return [event["pids"] for event in events if event["event"] == "start"][-1]
        return None

    return wait_for(pids, f"{number} steps")


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
    assert not alive(start_event["pids"])


def test_json_has_the_keys_that_scripts_rely_on_and_the_next_run_has_its_own_folder(workplace):
    (workplace / "runs/small-1").mkdir(parents=True)
    done = train(workplace, "--json")
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() >= {"run_dir", "steps", "epochs", "loss", "metrics", "samples_per_sec", "au", "verdict"}
    assert (found["run_dir"], found["steps"], found["restarts"], found["resumed_from"]) == ("runs/small-2", 30, 0, None)
    assert 0 < found["metrics"]["accuracy"] < 1
    assert found["samples_per_sec"] > 0


def test_a_killed_rank_restarts_the_run_from_its_last_checkpoint(workplace):
    with started(workplace, "--nproc", 2, "--set", "hold=13", "--set", "steps=40", "--run", "r") as process:
        pids = wait_for_steps(process, workplace / "r", 12)
        os.kill(pids[1], signal.SIGKILL)
        let_go(workplace)
        out, err = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, err
    assert re.search(r"\(40 steps\) in \d+ s; 1 restart, resumed from step 10; run r", out)
    starts = [event for event in read_events(workplace / "r/events.jsonl") if event["event"] == "start"]
    assert [event["attempt"] for event in starts] == [0, 1]
    assert starts[1]["step"] == 10
    assert not alive([pid for event in starts for pid in event["pids"]])


def test_a_signal_checkpoints_and_ends_and_the_same_command_goes_on(workplace):
    options = ("--nproc", 2, "--run", "r")
    with started(workplace, *options, *ENDLESS) as process:
        pids = wait_for_steps(process, workplace / "r", 7)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, err
    stopped = re.fullmatch(
        r"stopped at step ([\d,]+) of 1,000,000, with a checkpoint; go on with: "
        r"headrace train small.py --nproc 2 --run r --set pause=0.05 --set steps=1000000\n",
        out,
    )
    assert stopped, out
    assert not alive(pids)
    step = int(stopped[1].replace(",", ""))
    done = train(workplace, *options, "--set", f"steps={step + 20}")
    assert f"({step + 20:,} steps) in" in done.stdout
    assert f"resumed from step {step:,}; run r" in done.stdout
    newest = max((workplace / "r/checkpoints").iterdir())
    elsewhere = train(workplace, "--resume", newest, "--run", "other", "--set", f"steps={step + 30}", "--json")
    assert json.loads(elsewhere.stdout.splitlines()[-1])["steps"] == step + 30, "all steps, not those of this folder"


def test_steps_are_traced_on_all_ranks_and_others_on_the_rank_that_a_signal_asks(workplace):
    options = ("--nproc", 2, "--profile", "2:4", "--profile-all-ranks", "--set", "hold=6", "--run", "r")
    with started(workplace, *options) as process:
        pids = wait_for_steps(process, workplace / "r", 5)
        process.send_signal(signal.SIGUSR2)  # the command itself is no rank
        os.kill(pids[1], signal.SIGUSR2)
        let_go(workplace)
        err = process.communicate(timeout=DEADLINE_SEC)[1]
    assert process.returncode == 0, err
    names = sorted(path.name for path in (workplace / "r/profile").glob("*.json.gz"))
    assert names[:2] == ["rank0-steps2-3.json.gz", "rank1-steps2-3.json.gz"]
    # Rank 1 was in step 6, which it holds, or not yet.
    assert names[2:] in (["rank1-steps7-16.json.gz"], ["rank1-steps6-15.json.gz"])
    assert "profile r/profile/rank0-steps2-3.json.gz: rank 0, steps 2 to 3, " in err
    assert "profile r/profile/rank1-steps2-3.json.gz: rank 1, " in (workplace / "r/logs/rank1-attempt0.log").read_text()


def test_a_refused_second_launch_leaves_the_first_alone(workplace):
    """It says so in one line, and the first one's restart after a crash is not disturbed."""
    options = ("--nproc", 2, "--set", "hold=8", "--run", "r")
    with started(workplace, *options) as process:
        pids = wait_for_steps(process, workplace / "r", 7)
        second = train(workplace, *options)
        assert second.returncode == 1
        assert "r is in use by a run that is under way" in one_line(second.stderr)
        os.kill(pids[1], signal.SIGKILL)
        let_go(workplace)
        out, err = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 0, err
    assert "1 restart" in out


def test_workers_end_with_a_checkpoint_when_the_command_is_killed(workplace):
    with started(workplace, "--nproc", 2, *ENDLESS, "--run", "r") as process:
        pids = wait_for_steps(process, workplace / "r", 7)
        process.kill()
        process.communicate(timeout=DEADLINE_SEC)
    wait_gone(pids)
    stop = list(read_events(workplace / "r/events.jsonl"))[-1]
    assert stop["event"] == "stop"
    assert max((workplace / "r/checkpoints").iterdir()).name == f"step-{stop['step']:08d}"


def test_a_hang_up_means_the_same_as_a_scheduler_s_signal(workplace):
    with started(workplace, "--nproc", 2, *ENDLESS, "--run", "r") as process:
        wait_for_steps(process, workplace / "r", 7)
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=DEADLINE_SEC)
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


def test_a_file_in_the_working_directory_takes_no_place_of_python_s(workplace):
    here = workplace / "here"
    here.mkdir()
    (here / "json.py").write_text("raise SystemExit('this was run')\n")
    safe = [sys.executable, "-P", *command("../small.py", "--set", "steps=3")[1:]]  # as the installed command is
    done = subprocess.run(safe, cwd=here, capture_output=True, text=True, timeout=DEADLINE_SEC)
    assert done.returncode == 0, done.stderr
    assert "(3 steps)" in done.stdout


def test_a_folder_that_takes_no_files_is_one_line(workplace):
    done = train(workplace, "--run", "/proc/sys")
    assert done.returncode == 1
    assert "cannot write to the run's folder /proc/sys" in one_line(done.stderr)


def test_an_error_on_one_rank_is_the_one_shown_and_all_ranks_are_gone(workplace):
    write_recipe(workplace, fail="error")
    done = train(workplace, "--nproc", 2, "--run", "r", "--json")
    assert done.returncode == 1
    assert one_line(done.stderr) == "headrace: rank 1, step 3: ValueError: a digit too many"
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert error == {"type": "TrainingError", "message": "rank 1, step 3: ValueError: a digit too many"}
    starts = [event for event in read_events(workplace / "r/events.jsonl") if event["event"] == "start"]
    assert len(starts) == 1
    assert not alive(starts[0]["pids"])
    assert "line" in (workplace / "r/errors/rank1.json").read_text()
    last = list(read_events(workplace / "r/events.jsonl"))[-1]
    assert {"event": "error", "rank": 1, "step": 3, "type": "ValueError"}.items() <= last.items()
    assert last["message"] == "a digit too many"


def fill(path):
    with suppress(OSError), open(path, "ab", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_disk_that_fills_up_ends_the_run_with_one_line_and_with_room_it_goes_on(workplace, small_disk):
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    run_dir, filler = small_disk / "r", small_disk / "filler"
    with started(workplace, "--nproc", 2, "--set", "hold=8", "--run", run_dir) as process:
        pids = wait_for_steps(process, run_dir, 7)
        fill(filler)
        let_go(workplace)
        _, err = process.communicate(timeout=DEADLINE_SEC)
    assert process.returncode == 1
    assert "No space left on device" in one_line(err)
    assert not alive(pids)
    fill(filler)
    again = train(workplace, "--nproc", 2, "--run", run_dir)
    assert "No space left on device; make room, or choose --run DIR" in one_line(again.stderr)
    filler.unlink()
    done = train(workplace, "--nproc", 2, "--run", run_dir)
    assert "(30 steps)" in done.stdout, done.stderr
    assert "resumed from step 5" in done.stdout
    events = list(read_events(run_dir / "events.jsonl"))
    assert len([event for event in events if event["event"] == "start"]) == 2, "not tried again while the disk was full"


def test_what_a_step_is_blamed_for_is_what_happened_in_it(workplace):
    """An error of the evaluation after step 4 is not step 5's."""
    text = (workplace / "small.py").read_text().replace("p.correct}", "lambda output, batch: 1 / 0}")
    (workplace / "small.py").write_text(text)
    done = train(workplace, "--set", "steps=4")
    assert one_line(done.stderr) == "headrace: rank 0: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--set", "rate=1"], 2, "the recipe has no setting 'rate': it has lr: float = 0.1; steps: int = 30"),
        (["--set", "lr=fast"], 2, "setting lr must be of type float: got 'fast'"),
        (["--set", "lr"], 2, "a setting is given as name=value: got 'lr'"),
        (["--nproc", "0"], 2, "nproc"),
        (
            ["--mesh", "tp=2"],
            2,
            "rank 0: the mesh's sizes must multiply to the number of processes",
        ),
        (["--profile", "9:3"], 2, "profile must be two steps, the first one and the one behind the last, as 100:110"),
        (["--profile-all-ranks"], 2, "--profile-all-ranks says who traces the steps of --profile A:B: add that"),
        (
            ["--profile", "2:3", "--check", "5"],
            2,
            "--check tries runs of some seconds and removes them: leave --profile away",
        ),
        (["--profile", "25:60"], 2, "rank 0: profile must be steps of the run, which has 30: got 25:60"),
        (["--resume", "nowhere"], 1, "nowhere is neither a checkpoint nor a folder that has some"),
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
