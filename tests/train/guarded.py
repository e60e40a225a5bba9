"""What the guards' tests train: `python guarded.py NAME... --out FOLDER` runs some on this rank."""

from __future__ import annotations

import sys

import injected
import problems as p
import scenarios
import torch
from memory_loader import MemoryLoader
from torch import nn

import headrace as hr

SCENARIOS = {}


def scenario(fn):
    SCENARIOS[fn.__name__] = fn
    return fn


def guarded(folder, name, *, steps=(), change=None, rank=None, model=None, goal=60, **options):
    """A run of `goal` steps with faults in its batches: its last loss, weights, and what kept it from ending."""
    model = p.network() if model is None else model
    faults = {"steps": steps, "change": change, "rank": rank}
    loader = injected.FaultyLoader(p.fields(), 12, epochs=None, **faults)
    held_out = MemoryLoader(p.fields(96), 12, shuffle=False)
    options = {"guards": hr.Guards(), "steps": goal, **options}
    trainer = p.trainer(model, loader, run_dir=folder / name, evaluate=held_out, **options)
    message = scenarios.message_of(trainer)
    found = {"weights": p.weights(model), "message": message, "steps": trainer.step, "loss": last_loss(trainer)}
    if "ema" in options:
        with trainer.averaged():
            found["average"] = p.weights(model)
    return found


def last_loss(trainer):
    """Over all of the data; of the trainer's own evaluation."""
    with torch.no_grad():
        fields = p.fields(96)
        batch = {name: torch.from_numpy(values) for name, values in fields.items()}
        trainer.model.eval()
        return float(p.cross_entropy(trainer.model(batch["x"]), batch))


@scenario
def nothing_wrong(folder):
    return guarded(folder, "nothing_wrong")


@scenario
def nothing_guarded(folder):
    return guarded(folder, "nothing_guarded", guards=None)


@scenario
def poisoned(folder):
    """A NaN in a sample of the last rank at step 20, of which running statistics must not keep anything either."""
    faults = {"steps": [20], "change": injected.poison, "rank": last_rank()}
    return guarded(folder, "poisoned", model=normalised(), **faults)


@scenario
def unpoisoned(folder):
    return guarded(folder, "unpoisoned", model=normalised())


def normalised():
    return nn.Sequential(p.network(), nn.BatchNorm1d(3))


@scenario
def always_poisoned(folder):
    return guarded(folder, "always_poisoned", steps=range(20, 99), change=injected.poison, rank=last_rank())


WATCHFUL = hr.Guards(spike_window=32, snapshot_every=20, max_rollbacks=2)


@scenario
def blown_up(folder):
    """One batch of the last rank, at step 70, that throws the weights far off."""
    return guarded(
        folder,
        "blown_up",
        steps=[70],
        change=injected.blow_up,
        rank=last_rank(),
        guards=WATCHFUL,
        optimizer=hr.sgd(0.1, momentum=0.9),
        goal=120,
        checkpoint_every=50,
        ema=hr.ema(0.9),
    )


@scenario
def not_blown_up(folder):
    return guarded(folder, "not_blown_up", optimizer=hr.sgd(0.1, momentum=0.9), guards=WATCHFUL, goal=120)


@scenario
def blown_up_unguarded(folder):
    faults = {"steps": [70], "change": injected.blow_up, "rank": last_rank()}
    return guarded(folder, "blown_up_unguarded", guards=None, optimizer=hr.sgd(0.1, momentum=0.9), goal=120, **faults)


@scenario
def blown_up_again(folder):
    faults = {"steps": range(70, 120), "change": injected.blow_up}
    return guarded(folder, "blown_up_again", guards=WATCHFUL, optimizer=hr.sgd(0.1, momentum=0.9), goal=120, **faults)


@scenario
def hard_batches(folder):
    """Two in a row that are odd, and then none: the model gets over them."""
    faults = {"steps": [70, 71], "change": injected.confuse}
    return guarded(folder, "hard_batches", guards=WATCHFUL, goal=120, checkpoint_every=35, **faults)


@scenario
def halved(folder):
    """A run that is stopped while the learning rate recovers, and goes on."""
    faults = {"steps": [20, 21], "change": injected.poison}
    straight = guarded(folder, "straight", **faults)
    guarded(folder, "halved", goal=23, **faults)
    return {"straight": straight["weights"], **guarded(folder, "halved", **faults)}


def last_rank():
    place = injected.resolve_rank()
    return place.world_size - 1


ANYWHERE = list(SCENARIOS)
"""Those that run on any mesh."""


def replica(folder, name, *, step=33, checkpoint_every=50, **guards):
    """A bit is flipped in the last rank's parameters after a step; the ranks compare every ten."""
    optimizer = injected.flipping(hr.sgd(0.1, momentum=0.9), step=step, rank=last_rank())
    options = {"check_every": 10, "straggler_ratio": None, **guards}
    return guarded(
        folder,
        name,
        model=p.layered(),
        optimizer=optimizer,
        guards=hr.Guards(**options),
        checkpoint_every=checkpoint_every,
        ema=hr.ema(0.99),
    )


@scenario
def flipped(folder):
    return replica(folder, "flipped")


@scenario
def repaired(folder):
    return replica(folder, "repaired", on_corruption="repair")


@scenario
def not_flipped(folder):
    return replica(folder, "not_flipped", step=0)


@scenario
def found_before_it_is_saved(folder):
    return replica(folder, "found_before_it_is_saved", check_every=None, checkpoint_every=20)


REPLICATED = ["flipped", "repaired", "not_flipped", "found_before_it_is_saved"]
"""Those that need ranks which hold the same."""


@scenario
def unsound(folder):
    """From the 25th pass on the last rank's arithmetic does not repeat; every tenth step is computed twice before."""
    model = nn.Sequential(p.network(), injected.Unsound(first=25, rank=last_rank()))
    return guarded(folder, "unsound", model=model, guards=hr.Guards(replay_every=10))


@scenario
def unsound_and_noted(folder):
    model = nn.Sequential(p.network(), injected.Unsound(first=25, rank=last_rank()))
    return guarded(folder, "unsound_and_noted", model=model, guards=hr.Guards(replay_every=10, on_corruption="repair"))


@scenario
def slowed(folder):
    """The last rank takes 20 ms longer for its part of a step."""
    loss = injected.slowed(p.cross_entropy, sec=0.02, rank=last_rank())
    return guarded(folder, "slowed", loss=loss, guards=hr.Guards(check_every=20))


WHOLE = ["unsound", "unsound_and_noted", "slowed"]
"""Those that need the whole model on every rank."""


if __name__ == "__main__":
    sys.exit(scenarios.main(SCENARIOS))
