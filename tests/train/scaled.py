"""What the tests of fp16 train: `python scaled.py NAME... --out FOLDER` runs some of it on this rank."""

from __future__ import annotations

import sys

import problems as p
import torch
from memory_loader import MemoryLoader
from scenarios import main
from torch import nn

import headrace as hr
from headrace.rank import resolve_rank
from headrace.telemetry import read_events


class Trap(nn.Module):
    """Adds nothing; on the last rank the last element of its gradient is infinite in some backward passes."""

    def __init__(self, at):
        super().__init__()
        self.spring = nn.Parameter(torch.zeros(4))
        self.at, self.calls = at, 0

    def forward(self, x):
        place = resolve_rank()
        self.calls += self.training
        sprung = self.training and self.calls in self.at and place.rank == place.world_size - 1
        return x + _Spring.apply(self.spring, sprung).to(x.dtype)


class _Spring(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spring, sprung):
        ctx.sprung, ctx.like = sprung, spring
        return spring.sum()

    @staticmethod
    def backward(ctx, _):
        gradient = torch.zeros_like(ctx.like)
        gradient[-1] = float("inf") if ctx.sprung else 0.0
        return gradient, None


def trapped(at=(), seed=3):
    return nn.Sequential(p.network(seed=seed), Trap(at))


def steps_of(run_dir):
    return [event for event in read_events(run_dir / "events.jsonl") if event["event"] == "step"]


def whole(folder):
    """Parts, clipping, unequal batches."""
    model = p.layered()
    loader = MemoryLoader(p.fields(), 24, epochs=None, keep=lambda row: row % 5 != 1 and row % 8 != 2)
    options = {"micro_batch_size": 2, "clip_grad_norm": 0.5}
    result = p.trainer(model, loader, steps=12, precision="fp16", **options).fit()
    return {"weights": p.weights(model), "loss": result.loss, "overflowed": result.overflowed_steps}


def overflowing(folder):
    """Gradients overflow on one rank at steps 3 and 4."""
    model = trapped(at=(3, 4))
    before = []
    trainer = p.trainer(model, precision="fp16", run_dir=folder / "overflowing", clip_grad_norm=1.0)
    for step in range(1, 7):
        result = trainer.fit(steps=step)
        before.append((p.weights(model), result.overflowed_steps))
    return {"after": before, "steps": steps_of(folder / "overflowing")}


def resumed(folder):
    """A run of 12 steps, and one that ends after 7, past an overflow, and goes on as a new model."""
    straight, broken, other = trapped((3,)), trapped((3,)), trapped(seed=8)
    for model, name, steps in ((straight, "straight", 12), (broken, "broken", 7), (other, "broken", 12)):
        options = {"precision": "fp16", "optimizer": hr.adamw(0.01), "run_dir": folder / f"resumed-{name}"}
        p.trainer(model, **options).fit(steps=steps)
    return {
        "weights": [p.weights(straight), p.weights(other)],
        "scales": [[step["loss_scale"] for step in steps_of(folder / f"resumed-{n}")] for n in ("straight", "broken")],
    }


SCENARIOS = {fn.__name__: fn for fn in (whole, overflowing, resumed)}

if __name__ == "__main__":
    sys.exit(main(SCENARIOS))
