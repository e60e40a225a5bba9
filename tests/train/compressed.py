"""What the tests of compression train: `python compressed.py NAME... --out FOLDER` runs some of it on this rank."""

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

WAYS = {
    "plain": None,
    "bf16": "bf16",
    "fp16": "fp16",
    "power_sgd": hr.power_sgd(2, warmup_steps=3),
    "top_k": hr.top_k(0.1, warmup_steps=3),
}


def wide(seed=3, width=32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def curve(folder):
    """The same 120 steps by each way: the loss of every step, the weights, and what was sent."""
    found = {}
    for way, compression in WAYS.items():
        model, run_dir = wide(), folder / f"run-{way}"
        result = p.trainer(model, steps=120, compression=compression, run_dir=run_dir).fit()
        steps = [event for event in read_events(run_dir / "events.jsonl") if event["event"] == "step"]
        found[way] = {"weights": p.weights(model), "traffic": result.traffic, "steps": steps}
    return found


def shrunk(folder):
    """Parts, unequal batches, empty ones and clipping."""
    found = {}
    for way, compression in WAYS.items():
        model = wide()
        loader = MemoryLoader(p.fields(), 24, epochs=None, keep=lambda row: row % 3 != 1 and row % 8 != 2)
        options = {"micro_batch_size": 4, "clip_grad_norm": 0.5}
        result = p.trainer(model, loader, steps=60, compression=compression, **options).fit()
        found[way] = {"weights": p.weights(model), "loss": result.loss}
    return found


def exact(folder):
    """All elements, which loses nothing, with parts, unequal batches and clipping."""
    found = {}
    for way, compression in {"plain": None, "top_k": hr.top_k(1.0, warmup_steps=0)}.items():
        model = wide()
        loader = MemoryLoader(p.fields(), 24, epochs=None, keep=lambda row: row % 3 != 1 and row % 8 != 2)
        p.trainer(model, loader, steps=20, compression=compression, micro_batch_size=4, clip_grad_norm=0.5).fit()
        found[way] = p.weights(model)
    return found


def resumed(folder):
    """For each way a run of 20 steps, and one that ends after 11 and goes on as a new model."""
    found = {}
    for way in ("bf16", "power_sgd", "top_k"):
        straight, broken, other = wide(), wide(), wide(seed=8)
        for model, name, steps in ((straight, "straight", 20), (broken, "broken", 11), (other, "broken", 20)):
            options = {"compression": WAYS[way], "optimizer": hr.adamw(0.01), "run_dir": folder / f"{way}-{name}"}
            p.trainer(model, **options).fit(steps=steps)
        found[way] = [p.weights(straight), p.weights(other)]
    return found


def repeated(folder):
    """The gradients of one batch, 40 times without learning from it, of a model that fills several buckets."""
    batch = next(iter(MemoryLoader(p.fields(), 12)))
    found = {}
    for way in ("plain", "power_sgd", "top_k"):
        model = wide(width=600)
        module = hr.parallelize(model, "dp", compression=WAYS[way], device="cpu")
        steps = []
        for _ in range(40):
            module.zero_grad()
            p.cross_entropy(module(batch["x"]), batch).backward()
            steps.append([param.grad.clone() for param in model.parameters()])
        found[way] = {"first": steps[3], "mean": [torch.stack(each).mean(0) for each in zip(*steps[3:], strict=True)]}
    return found


def begun(folder):
    p.trainer(wide(), steps=10, compression=WAYS["top_k"], run_dir=folder / "begun").fit()
    return {}


def spoilt(folder):
    """Gradients that are not finite at one step, as a loop of one's own may let pass."""
    found = {}
    for way in ("power_sgd", "top_k"):
        model = wide()
        module = hr.parallelize(model, "dp", compression=WAYS[way], device="cpu")
        for number, batch in zip(range(12), MemoryLoader(p.fields(), 12, epochs=None), strict=False):
            factor = float("nan") if number == 5 and resolve_rank().rank == 1 else 1.0
            (p.cross_entropy(module(batch["x"]), batch) * factor).backward()
            gradients = [param.grad.clone() for param in model.parameters()]
            module.zero_grad()
        found[way] = gradients
    return found


SCENARIOS = {fn.__name__: fn for fn in (curve, shrunk, exact, resumed, repeated, begun, spoilt)}


if __name__ == "__main__":
    sys.exit(main(SCENARIOS))
