"""What stages of a pipeline keep, each its own: `python staged.py NAME... --out FOLDER` runs some on this rank."""

from __future__ import annotations

import problems as p
import scenarios
import torch
from memory_loader import MemoryLoader
from torch import nn

import headrace as hr
from headrace.errors import HeadraceError

STAGED = {"average": scenarios.averaged, "begun": scenarios.average_begun, "continued": scenarios.average_continued}


def staged(fn):
    STAGED[fn.__name__] = fn
    return fn


def _averaging(run_dir, seed=3):
    """A batch norm, whose statistics differ over the data, before the place where a second stage begins."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.BatchNorm1d(6), p.layered(seed))
    options = {"optimizer": hr.adamw(0.01), "ema": hr.ema(0.9, every=2), "run_dir": run_dir, "pp_stages": ["1.2"]}
    return model, p.trainer(model, **options)


@staged
def average_in_two_runs(folder):
    """Averages of a run of 19 steps, and of one that ends at 13 and goes on in another Trainer."""
    straight, trainer = _averaging(folder / "at-once")
    trainer.fit(steps=19)
    _averaging(folder / "in-two")[1].fit(steps=13)
    again, resumed = _averaging(folder / "in-two", seed=5)
    resumed.fit(steps=19)
    own = p.weights(again)
    with trainer.averaged(), resumed.averaged():
        return {"straight": p.weights(straight), "again": p.weights(again), "own": own}


def _half_frozen(folder, steps, seed=3, **options):
    """In each stage some is trained. What is frozen is always the same."""
    torch.manual_seed(seed)
    model, fixed = p.layered(seed), p.layered().state_dict()
    for name, param in model.named_parameters():
        if name.endswith("up.weight"):
            param.data.copy_(fixed[name])
            param.requires_grad_(False)
    options = {"optimizer": hr.adamw(0.01), "run_dir": folder, "save_frozen": False, **options}
    p.trainer(model, MemoryLoader(p.fields(), 12, epochs=None), **options).fit(steps=steps)
    return p.weights(model)


@staged
def frozen_in_two_runs(folder):
    """A run of 8 steps, and one that ends at 4 and goes on, with an average, without the frozen parameters."""
    straight = _half_frozen(folder / "frozen-at-once", 8, ema=0.9)
    _half_frozen(folder / "frozen-in-two", 4, ema=0.9)
    return {"straight": straight, "again": _half_frozen(folder / "frozen-in-two", 8, seed=9, ema=0.9)}


@staged
def frozen_elsewhere(folder):
    """The run that was begun on other processes."""
    return _half_frozen(folder / "frozen-at-once", 8, seed=9, ema=0.9)


@staged
def frozen_otherwise(folder):
    """A parameter of the last stage is frozen with other values than the checkpoint's run had."""
    model = p.layered()
    model[1][2].up.weight.requires_grad_(False)
    model[1][2].up.weight.data.add_(1e-6)
    options = {"optimizer": hr.adamw(0.01), "run_dir": folder / "frozen-at-once", "save_frozen": False, "ema": 0.9}
    try:
        p.trainer(model, **options).fit(steps=9)
    except HeadraceError as err:
        return str(err)
    return None


if __name__ == "__main__":
    scenarios.main(STAGED)
