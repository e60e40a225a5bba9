"""A run in which rank 1 hangs in its third step, each time in another way.

`python hang_run.py HOW RUN` runs it on this rank; as a recipe (`hang_run.py`) it runs under `headrace train`.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import problems as p
import torch
import torch.distributed as dist

import headrace as hr

LIMIT_SEC = 4.0


def never_ends(rank):
    if rank == 1:
        threading.Event().wait()


def leaves_out_a_collective(rank):
    if rank == 0:
        dist.barrier()


def is_stopped(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


def holds_the_lock(rank):
    """As code in C does that never lets go of it."""
    if rank == 1:
        sys.setswitchinterval(1e9)
        while True:
            pass


def recipe(*, how: str, mesh: str = "dp", steps: int = 6) -> hr.Trainer:
    torch.set_num_threads(1)

    def loss(output, batch):
        if made.step == 2:
            globals()[how](int(os.environ["RANK"]))
        return p.cross_entropy(output, batch)

    made = p.trainer(loss=loss, steps=steps, mesh=mesh, hang_timeout_sec=LIMIT_SEC)
    return made


def slow_where_it_may_be() -> hr.Trainer:
    """The first step, and the evaluation's batch after the last, take longer than the limit on rank 1."""

    def loss(output, batch):
        if os.environ["RANK"] == "1" and made.step in (0, 3):
            time.sleep(1.5 * LIMIT_SEC)
        return p.cross_entropy(output, batch)

    held_out = p.MemoryLoader(p.fields(12), 12)
    made = p.trainer(loss=loss, steps=3, evaluate=held_out, hang_timeout_sec=LIMIT_SEC)
    return made


if __name__ == "__main__":
    trainer = slow_where_it_may_be() if sys.argv[1] == "slow" else recipe(how=sys.argv[1])
    trainer.run_dir = Path(sys.argv[2])
    trainer.fit()
