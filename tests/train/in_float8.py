"""Training in float8, whose roundings are emulated here: `python in_float8.py NAME... --out FOLDER` on this rank."""

from __future__ import annotations

import problems as p
import scenarios
import torch
from memory_loader import MemoryLoader
from torch import nn

import headrace as hr
from headrace.train.parallel import float8

FLOAT8 = {}
LAYERS = {f"1.{block}.{layer}" for block in range(3) for layer in ("up", "down")}


def scenario(fn):
    FLOAT8[fn.__name__] = fn
    return fn


def network(seed=3, width=32):
    """Blocks whose linear layers fit float8, a first and a last layer that do not."""
    torch.manual_seed(seed)
    blocks = [p.Block(width) for _ in range(3)]
    for block in blocks:
        block.up, block.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
    return nn.Sequential(nn.Linear(6, width), nn.Sequential(*blocks), nn.LayerNorm(width), nn.Linear(width, 3))


def trainer(model, precision="float8", **options):
    everything = MemoryLoader(p.fields(), 12, shuffle=False)
    return p.trainer(model, precision=precision, evaluate=everything, **options)


@scenario
def learned(folder):
    """Weights after some steps by each precision, and what the evaluation finds."""
    found = {}
    for precision in ("bf16", "float8"):
        model = network()
        result = trainer(model, precision, steps=16, micro_batch_size=3).fit()
        found[precision] = {"weights": p.weights(model), "loss": result.loss}
    return found


@scenario
def resumed(folder):
    """A run of 8 steps, and one that ends at 4 and goes on in another Trainer."""
    found = {}
    for name, parts in {"straight": (8,), "again": (4, 8)}.items():
        for seed, steps in enumerate(parts, start=3):
            model = network(seed)
            trainer(model, optimizer=hr.adamw(0.01), run_dir=folder / name).fit(steps=steps)
        found[name] = p.weights(model)
    return found


if __name__ == "__main__":
    float8._EMULATED = True
    scenarios.main(FLOAT8)
