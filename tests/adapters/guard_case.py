"""What the guarded loops beside this share: data, models, faults, and what is kept of a run.

Each script is run as `guard_LIBRARY.py DATA OUT NAME...` and trains the named cases, one after the other. A case says
how long, by which optimizer, with which guards, and at which step what is done to the batch. Its weights, its findings
and the error that ended it go to OUT/NAME-RANK.pt, its events to OUT/NAME.
"""

import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import headrace as hr
from headrace.adapters.recorded import Recorded
from headrace.errors import TrainingError

RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
GLOBAL_BATCH_SIZE = 12
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def poison(batch):
    """A NaN in the second sample of the last rank."""
    if RANK == WORLD_SIZE - 1:
        batch["x"][1, 2] = float("nan")


def blow_up(batch):
    """Values far outside of the data's range, with labels that are wrong."""
    batch["x"] *= 1e3
    batch["cls"] = (batch["cls"] + 1) % 3


def slow(batch):
    """The last rank takes 50 ms longer for it."""
    if RANK == WORLD_SIZE - 1:
        time.sleep(0.05)


@dataclass(frozen=True)
class Case:
    steps: int
    optimizer: partial
    guards: hr.Guards
    faults: tuple = ()
    """Of these steps the batch is changed by `change`."""
    change: object = None
    flip: int | None = None
    """After this step a bit of the last rank's first parameter flips."""
    normalised: bool = False


CASES = {
    "nan": Case(30, ADAMW, hr.Guards(back_off=1), (20,), poison, normalised=True),
    "spike": Case(90, SGD, hr.Guards(spike_window=32, snapshot_every=20), (70,), blow_up),
    "bad": Case(30, SGD, hr.Guards(max_bad_steps=3), range(20, 30), poison),
    "slow": Case(41, SGD, hr.Guards(check_every=20), range(1, 42), slow),
    "flip": Case(60, SGD, hr.Guards(check_every=10), flip=33),
    "repair": Case(60, SGD, hr.Guards(check_every=10, on_corruption="repair"), flip=33),
}


def make_loader(data, **options):
    stream = hr.Stream(hr.open(data), seed=5, epochs=12).decode().map(fields)
    return hr.Loader(stream, global_batch_size=GLOBAL_BATCH_SIZE, threads=1, **options)


def fields(sample):
    return {"__key__": sample["__key__"], "x": sample["npy"], "cls": sample["cls"]}


def make_model(case, world_size=WORLD_SIZE):
    """Running statistics, where a case is for them, on one rank only: on several each would have its own."""
    torch.manual_seed(3)
    first = [torch.nn.BatchNorm1d(6)] if case.normalised and world_size == 1 else []
    return torch.nn.Sequential(*first, torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def loss_of(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["cls"])


class Faulty:
    """The batches of a case: of the loader, with the case's faults, as many as it has steps."""

    def __init__(self, loader, case):
        self.loader, self.case = loader, case
        self.given = 0

    def change(self, batch):
        self.given += 1
        if self.given in self.case.faults:
            self.case.change(batch)
        return batch

    def __len__(self):
        return self.case.steps

    def __iter__(self):
        for batch in self.loader:
            yield self.change(batch)
            if self.given == self.case.steps:
                return


def flip_bit(model):
    """One of the last rank's first parameter."""
    if RANK == WORLD_SIZE - 1:
        with torch.no_grad():
            next(model.parameters()).view(torch.int32).view(-1)[0] ^= 1 << 20


def main(train):
    """`train(case, recorded, model, found)` trains the model and puts the Guarded that it makes into `found`."""
    data, out, *names = sys.argv[1:]
    for name in names:
        model, found, message = make_model(CASES[name]), {}, None
        recorded = Recorded(make_loader(data), Path(out) / name)
        try:
            train(CASES[name], recorded, model, found)
        except TrainingError as err:
            message = str(err)
        guarded = found["guarded"]
        findings = [finding.event() for finding in guarded.findings]
        weights = {name: value.cpu() for name, value in model.state_dict().items()}
        kept = {"weights": weights, "findings": findings, "message": message, "step": guarded.step}
        torch.save(kept, Path(out) / f"{name}-{RANK}.pt")
        recorded.loader.close()
