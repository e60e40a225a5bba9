"""What the training scripts beside this share: a stream, a tiny model, and a record of batches that can kill.

Each script is run as `script.py DATA RUN KILL_AT`: it trains on the dataset DATA, saves every SAVE_EVERY batches under
RUN, and goes on from what it finds there. It appends the keys of every batch to RUN/batches-RANK.jsonl before it trains
on it, and rank 0 kills itself with SIGKILL when its file has KILL_AT lines (0: never). With RECORDED in the
environment the run's events go to RUN/record.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

import headrace as hr
from headrace.adapters.recorded import Recorded

DATA, RUN, KILL_AT = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
SAVE_EVERY = 4
GLOBAL_BATCH_SIZE = 12
EPOCHS = 2


def make_stream(epochs=1):
    return hr.Stream(hr.open(DATA), seed=5, epochs=epochs).decode()


def make_loader(epochs=1):
    loader = hr.Loader(make_stream(epochs), global_batch_size=GLOBAL_BATCH_SIZE, threads=1)
    return Recorded(loader, RUN / "record") if os.environ.get("RECORDED") else loader


def make_model():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def loss_of(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["npy"]), batch["cls"])


def steps_done(loader):
    """Batches that a loader has given out since its first epoch."""
    loader = getattr(loader, "loader", loader)
    state = loader.state_dict()
    return state["epoch"] * loader.steps_per_epoch + state["position"] // loader.global_batch_size


def record(batch):
    path = RUN / f"batches-{RANK}.jsonl"
    with open(path, "a") as lines:
        lines.write(json.dumps(batch["__key__"]) + "\n")
    if KILL_AT and RANK == 0 and len(path.read_text().splitlines()) == KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)
