"""What the tests train, on one process or several: `python scenarios.py NAME... --out FOLDER` runs some on this rank.

Each scenario returns values that a test compares; as a script each rank leaves them in FOLDER/NAME-RANK.pt.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

import numpy as np
import problems as p
import pytest
import torch
from memory_loader import MemoryLoader
from torch import nn

import headrace as hr

SCENARIOS = {}
RANK, WORLD_SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def scenario(fn):
    SCENARIOS[fn.__name__] = fn
    return fn


@scenario
def plain(folder):
    model = p.network()
    result = p.trainer(model, steps=20).fit()
    return {"weights": p.weights(model), "loss": result.loss, "samples": result.samples}


@scenario
def clipped_momentum(folder):
    model = p.network()
    optimizer = hr.sgd(0.1, momentum=0.9)
    p.trainer(model, steps=20, optimizer=optimizer, clip_grad_norm=0.5, schedule=hr.cosine(3)).fit()
    return p.weights(model)


@scenario
def accumulated(folder):
    model = p.network()
    p.trainer(model, steps=20, micro_batch_size=2).fit()
    return p.weights(model)


@scenario
def token_weighted(folder):
    model = p.network()
    result = p.trainer(model, loss=p.by_tokens, steps=20, micro_batch_size=4).fit()
    return {"weights": p.weights(model), "loss": result.loss, "bits": result.metrics["bits"]}


@scenario
def in_blocks(folder):
    model = p.layered()
    result = p.trainer(model, steps=20, clip_grad_norm=0.3, micro_batch_size=1, evaluate=_held_out()).fit()
    return {"weights": p.weights(model), "loss": result.loss, "samples": result.samples}


@scenario
def recomputed(folder):
    model = p.layered()
    p.trainer(model, steps=10, micro_batch_size=2, activation_checkpointing="full").fit()
    return p.weights(model)


@scenario
def in_sequence(folder):
    """With tensor parallel processes, norms and what is added up are cut along the sequence."""
    model = p.OverSequence()
    options = {"tp_plan": p.OverSequence.plan()} if "tp" in os.environ.get("TEST_MESH", "") else {}
    p.trainer(model, steps=10, clip_grad_norm=0.3, micro_batch_size=2, **options).fit()
    return p.weights(model)


@scenario
def in_bf16(folder):
    model = p.layered()
    result = p.trainer(model, steps=10, precision="bf16", micro_batch_size=2, evaluate=_held_out()).fit()
    return {"weights": p.weights(model), "loss": result.loss}


@scenario
def unequal_parts(folder):
    """Ranks cut their batches into different numbers of parts, in training and in evaluation."""
    model = p.layered()
    loader = MemoryLoader(p.fields(), 24, epochs=None, keep=lambda row: row % 5 != 1 and row % 8 != 2)
    held_out = _held_out(lambda row: row < 12 or row % 2 == 1)
    result = p.trainer(model, loader, steps=10, micro_batch_size=2, evaluate=held_out, evaluate_every=1).fit()
    return {"weights": p.weights(model), "loss": result.loss, "samples": result.samples}


@scenario
def by_every_optimizer(folder):
    found = {}
    for name, optimizer in p.OPTIMIZERS.items():
        if name == "muon" and "pp" in os.environ.get("TEST_MESH", ""):
            continue
        model = p.layered()
        p.trainer(model, steps=6, optimizer=optimizer, clip_grad_norm=0.5).fit()
        found |= {f"{name}.{key}": value for key, value in p.weights(model).items()}
    return found


@scenario
def by_hand(folder):
    """A loop of the user's own."""
    model = p.layered()
    mesh = os.environ.get("TEST_MESH", "dp")
    staged = "pp" in mesh
    module = hr.parallelize(model, mesh, device="cpu", pp_micro_batches=3 if staged else None)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for batch, _ in zip(MemoryLoader(p.fields(), 12, epochs=None), range(10), strict=False):
        if staged:
            module.learn(batch["x"], target=batch["cls"], loss=nn.functional.cross_entropy)
        else:
            p.cross_entropy(module(batch["x"]), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return p.weights(model)


def _averaging(run_dir=None, seed=3, fail_at=None, decay=0.9, **options):
    """Blocks that FSDP cuts, and a batch norm, whose statistics differ from rank to rank."""
    torch.manual_seed(seed)
    model = nn.Sequential(p.layered(seed), nn.BatchNorm1d(3))
    options = {"optimizer": hr.adamw(0.01), "ema": hr.ema(decay, every=2), "run_dir": run_dir, **options}
    return model, p.trainer(model, loss=NoisyLoss(fail_at), checkpoint_every=4, **options)


@scenario
def started(folder):
    """A model that another seed made, started from a file."""
    path = folder / "start.safetensors"
    cut = hr.parallelize(p.layered(), os.environ.get("TEST_MESH", "dp"), device="cpu")
    hr.load_weights(cut, path)
    model = p.layered()
    hr.load_weights(model, path)
    p.trainer(model, steps=3).fit()
    return {"parallelized": p.weights(cut), "trained": p.weights(model)}


@scenario
def averaged(folder):
    """Trained and averaged weights, and what an evaluation of the latter finds."""
    model = p.layered()
    trainer = p.trainer(model, steps=12, ema=0.9, evaluate=_held_out())
    result = trainer.fit()
    before = p.weights(model)
    with trainer.averaged():
        inside = p.weights(model)
    return {"trained": p.weights(model), "before": before, "averaged": inside, "loss": result.loss}


@scenario
def average_called(folder):
    """Steps after a forward pass on averaged weights, and those of a run without one."""
    found = {}
    for calls in (False, True):
        model = p.layered()
        trainer = p.trainer(model, ema=0.9)
        trainer.fit(steps=4)
        with trainer.averaged(), torch.no_grad():
            if calls:
                model(torch.ones(2, 6))
        trainer.fit(steps=6)
        found["called" if calls else "straight"] = p.weights(model)
    return found


@scenario
def average_resumed(folder):
    """Two runs of 19 steps, one of which fails in step 15 and goes on from step 12."""
    straight, trainer = _averaging(folder / "average-straight")
    trainer.fit(steps=19)
    _, broken = _averaging(folder / "average-broken", fail_at=15)
    with pytest.raises(RuntimeError, match="the power is off"):
        broken.fit(steps=19)
    again, resumed = _averaging(folder / "average-broken", seed=5)
    result = resumed.fit(steps=19)
    with trainer.averaged(), resumed.averaged():
        return {
            "straight": p.weights(straight),
            "broken": p.weights(again),
            "resumed_from": result.resumed_from.name,
        }


@scenario
def average_begun(folder):
    _averaging(folder / "average-begun")[1].fit(steps=7)
    return {}


@scenario
def average_continued(folder):
    """The same run elsewhere; nothing is trained any more."""
    model, trainer = _averaging(folder / "average-begun", seed=5)
    trainer.fit(steps=7)
    with trainer.averaged():
        return p.weights(model)


def _held_out(keep=None):
    return MemoryLoader(p.fields(53, seed=2), 12, shuffle=False, drop_last=False, keep=keep)


@scenario
def filtered(folder):
    """Batches shrink differently on each rank."""
    model = p.network()
    loader = MemoryLoader(p.fields(), 24, epochs=None, keep=lambda row: row % 3 != 1)
    result = p.trainer(model, loader, steps=20).fit()
    return {"weights": p.weights(model), "loss": result.loss, "samples": result.samples}


@scenario
def padded(folder):
    """The last batch of an epoch has repeats."""
    model = p.network()
    loader = MemoryLoader(p.fields(77), 12, epochs=None, drop_last=False)
    result = p.trainer(model, loader, steps=14).fit()
    return {"weights": p.weights(model), "samples": result.samples}


@scenario
def empty_on_one_rank(folder):
    """From the third batch on the second rank gets nothing."""
    model = p.network()
    loader = MemoryLoader(p.fields(24), 4, epochs=None, shuffle=False, keep=lambda row: row < 8 or row % 2 == 0)
    result = p.trainer(model, loader, steps=12).fit()
    return {"weights": p.weights(model), "samples": result.samples}


@scenario
def nothing_at_all(folder):
    """Some global batches are empty on every rank."""
    model = p.network()
    loader = MemoryLoader(p.fields(24), 4, epochs=None, shuffle=False, keep=lambda row: row < 8)
    result = p.trainer(model, loader, steps=12, optimizer=hr.adamw(0.01)).fit()
    return {"weights": p.weights(model), "samples": result.samples}


@scenario
def evaluated(folder):
    held_out = MemoryLoader(p.fields(53, seed=2), 12, shuffle=False, drop_last=False)
    trainer = p.trainer(steps=5, evaluate=held_out, metrics={"accuracy": p.correct}, loss=p.by_tokens)
    result = trainer.fit()
    return {"loss": result.loss, **result.metrics}


class NoisyLoss:
    """A loss that draws from every generator, and fails on one rank at one step."""

    def __init__(self, fail_at=None):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, output, batch):
        self.calls += 1
        if self.calls == self.fail_at:
            raise RuntimeError("the power is off")
        noise = random.random() + np.random.random() + random.gauss(0, 0.1) + np.random.normal()
        return nn.functional.cross_entropy(output, batch["cls"]) * (1 + 0.01 * noise)


def _noisy(run_dir, seed, fail_at=None, **options):
    model = nn.Sequential(p.network(dropout=0.3, seed=seed), nn.BatchNorm1d(3))
    defaults = {"optimizer": hr.adamw(0.01), "schedule": hr.cosine(2), "steps": 20, "checkpoint_every": 4}
    options = defaults | options
    loader = MemoryLoader(p.fields(), 12, epochs=2)
    return model, p.trainer(model, loader, NoisyLoss(fail_at), run_dir=run_dir, **options)


@scenario
def resumed(folder):
    """One run of 20 steps, and one that fails in step 15 and goes on from step 12."""
    straight, trainer = _noisy(folder / "straight", seed=3)
    trainer.fit()
    _, trainer = _noisy(folder / "broken", seed=3, fail_at=15)
    try:
        trainer.fit()
    except RuntimeError as err:
        failed = str(err)
    torch.manual_seed(99)
    broken, trainer = _noisy(folder / "broken", seed=5)
    result = trainer.fit()
    return {
        "straight": p.weights(straight),
        "broken": p.weights(broken),
        "failed": failed,
        "resumed_from": result.resumed_from.name,
    }


@scenario
def in_two_runs(folder):
    """One run of 20 steps, and one that ends after step 13 and goes on in another Trainer."""
    straight, trainer = _noisy(folder / "at-once", seed=3, schedule=None)
    trainer.fit()
    _, trainer = _noisy(folder / "in-two", seed=3, schedule=None)
    trainer.fit(steps=13)
    torch.manual_seed(99)
    in_two, trainer = _noisy(folder / "in-two", seed=5, schedule=None)
    trainer.fit()
    return [p.weights(straight), p.weights(in_two)]


@scenario
def resumed_with_momentum(folder):
    """fit twice in one process: the second call goes on where the first ended, within an epoch."""
    models = []
    for goals in ((20,), (13, 20)):
        model = p.network(dropout=0.2)
        trainer = p.trainer(model, MemoryLoader(p.fields(), 12, epochs=3), optimizer=hr.sgd(0.05, momentum=0.9))
        for goal in goals:
            trainer.fit(steps=goal)
        models.append(p.weights(model))
    return models


@scenario
def begun(folder):
    """The first half of a run."""
    p.trainer(p.network(), steps=10, optimizer=hr.adamw(0.01), run_dir=folder / "begun").fit()
    return {}


@scenario
def continued(folder):
    """Its second half; the model begins otherwise."""
    model = p.network(seed=8)
    result = p.trainer(model, steps=20, optimizer=hr.adamw(0.01), run_dir=folder / "begun").fit()
    return {"weights": p.weights(model), "resumed_from": result.resumed_from.name}


@scenario
def exploding(folder):
    """On the last rank the loss becomes infinite at step 3."""
    return {"message": message_of(Exploding.trainer(steps=6, clip_grad_norm=1.0))}


@scenario
def exploding_without_clipping(folder):
    """The same where nothing looks at the gradients; nothing of it may be saved."""
    trainer = Exploding.trainer(steps=6, checkpoint_every=1, run_dir=folder / "exploded")
    return {"message": message_of(trainer)}


@scenario
def unused(folder):
    """A model with a layer that takes no part."""
    return {"message": message_of(p.trainer(WithSpare(), steps=6))}


class WithSpare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = p.network(), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


def message_of(trainer):
    try:
        trainer.fit()
    except hr.errors.TrainingError as err:
        return str(err)


class Exploding:
    """On the last rank the loss is infinite in step 3."""

    @classmethod
    def trainer(cls, **options):
        loss = cls()
        loss.run = p.trainer(loss=loss, **options)
        return loss.run

    def __call__(self, output, batch):
        explodes = RANK == WORLD_SIZE - 1 and self.run.making == 3
        return p.cross_entropy(output, batch) * (float("inf") if explodes else 1)


def main(scenarios):
    """Run those of `scenarios` that are named; values go to FOLDER/NAME-RANK.pt."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.names:
        found = scenarios[name](options.out)
        torch.save(found, options.out / f"{name}-{RANK}.pt")


if __name__ == "__main__":
    sys.exit(main(SCENARIOS))
