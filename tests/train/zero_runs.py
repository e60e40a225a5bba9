"""What DeepSpeed trains beside the scenarios of every mesh: `python zero_runs.py NAME... --out FOLDER`."""

from __future__ import annotations

import sys

import problems as p
import torch
from scenarios import SCENARIOS, main, message_of
from torch import nn

import headrace as hr

RUNS = {
    name: SCENARIOS[name]
    for name in (
        "plain",
        "clipped_momentum",
        "accumulated",
        "token_weighted",
        "in_blocks",
        "recomputed",
        "in_bf16",
        "unequal_parts",
        "filtered",
        "padded",
        "empty_on_one_rank",
        "evaluated",
        "resumed",
        "in_two_runs",
        "resumed_with_momentum",
        "exploding",
        "continued",
    )
}


class Adapted(nn.Module):
    """A frozen network, a layer that is trained behind it, and a factor, which is shorter than there are ranks."""

    def __init__(self, seed=3):
        super().__init__()
        self.base = p.network().requires_grad_(False)
        torch.manual_seed(seed)
        self.head, self.factor = nn.Linear(3, 3), nn.Parameter(torch.tensor([1.0 + seed / 10]))

    def forward(self, x):
        return self.factor * self.head(self.base(x))


def adapted(folder):
    """A run of 12 steps, and one that ends after 7 and goes on with other weights; frozen ones are not saved."""
    options = {"optimizer": hr.sgd(0.1, momentum=0.9), "save_frozen": False}
    straight, cut, again = Adapted(), Adapted(), Adapted(seed=5)
    p.trainer(straight, steps=12, **options).fit()
    p.trainer(cut, steps=7, run_dir=folder / "adapted", **options).fit()
    p.trainer(again, steps=12, run_dir=folder / "adapted", **options).fit()
    return {"straight": p.weights(straight), "again": p.weights(again)}


def _wide(seed, **options):
    """With a layer that is too large to stay gathered, and evaluations between its steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 3))
    held_out = p.MemoryLoader(p.fields(53, seed=2), 12, shuffle=False, drop_last=False)
    options = {"evaluate": held_out, "evaluate_every": 0.25, "micro_batch_size": 4, **options}
    return model, p.trainer(model, optimizer=hr.sgd(0.1, momentum=0.9), clip_grad_norm=0.5, **options)


def wide(folder):
    """A run of 10 steps, and one that ends after 5 and goes on with other weights."""
    straight, trainer = _wide(3)
    loss = trainer.fit(steps=10).loss
    _wide(3, run_dir=folder / "wide")[1].fit(steps=5)
    again, trainer = _wide(5, run_dir=folder / "wide")
    trainer.fit(steps=10)
    return {"weights": p.weights(straight), "loss": loss, "again": p.weights(again)}


def nothing_to_learn(folder):
    """From the third batch on no rank has a sample."""
    loader = p.MemoryLoader(p.fields(24), 4, epochs=None, shuffle=False, keep=lambda row: row < 8)
    return {"message": message_of(p.trainer(loader=loader, steps=12))}


RUNS |= {"adapted": adapted, "wide": wide, "nothing_to_learn": nothing_to_learn}

if __name__ == "__main__":
    sys.exit(main(RUNS))
