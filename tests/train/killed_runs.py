"""Runs of two ranks that are killed while they save: `python killed_runs.py FOLDER sync|async TRIALS SEED`.

Each trial starts a run, waits until a random share of a checkpoint's bytes is there, kills all ranks, and lets the run
go on for one step more. Ranks are forked from this process, which has imported everything; it starts no thread itself.
Prints a line a trial: the step being saved, the newest complete checkpoint after the kill, where the run went on from.
"""

import os
import random
import signal
import socket
import sys
import traceback
from pathlib import Path

import problems as p
import torch
from torch import nn

import headrace as hr
from headrace.train.checkpoint import complete_checkpoints, step_of
from waiting import wait_for

RANKS = 2


def train(run_dir, steps, is_async):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 512), *[nn.Linear(512, 512) for _ in range(4)], nn.Linear(512, 3))
    options = {"optimizer": hr.adamw(1e-4), "checkpoint_every": 1, "checkpoint_async": is_async}
    result = p.trainer(model, run_dir=run_dir, **options).fit(steps=steps)
    if os.environ["RANK"] == "0":
        (run_dir / "went-on").write_text(str(result.resumed_from))


def start(run_dir, steps, is_async, port):
    pids = []
    for rank in range(RANKS):
        if (pid := os.fork()) == 0:
            try:
                os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                train(run_dir, steps, is_async)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    return pids


def trial(run_dir, is_async, share):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        pids = start(run_dir, 1_000_000, is_async, probe.getsockname()[1])
        folder = run_dir / "checkpoints"
        wait_for(lambda: complete_checkpoints(folder), "a checkpoint")
        whole = size(folder / complete_checkpoints(folder)[0].name)
        saving = wait_for(lambda: caught(folder, whole * share), "a save")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        newest = complete_checkpoints(folder)[0].name
        pids = start(run_dir, step_of(newest) + 1, is_async, probe.getsockname()[1])
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * RANKS
    assert not list(folder.glob("*.partial"))
    print(saving, step_of(newest), step_of(Path((run_dir / "went-on").read_text()).name), flush=True)


def caught(folder, num_bytes):
    """The step that is being saved, once so much of it is written."""
    for path in folder.glob("step-*.partial"):
        if (step := step_of(path.name.removesuffix(".partial"))) and size(path) >= num_bytes:
            return step
    return None


def size(folder):
    found = 0
    for path in folder.glob("*"):
        try:
            found += path.stat().st_size
        except FileNotFoundError:  # renamed meanwhile
            return 0
    return found


def main(folder, way, trials, seed):
    torch.set_num_threads(1)
    rng = random.Random(int(seed))
    for number in range(int(trials)):
        trial(Path(folder) / str(number), way == "async", rng.random())


if __name__ == "__main__":
    main(*sys.argv[1:])
