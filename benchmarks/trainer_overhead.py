"""What the Trainer adds to a step: a bare PyTorch loop and the Trainer, same model, same batches, in turns.

    python benchmarks/trainer_overhead.py [--rounds 9] [--steps 200] [--threads 1] [--width 472] [--no-clip]

One process. Each round trains the same number of steps with the bare loop, the Trainer, and the Trainer with its
default guards (in alternating order), with clipping, a cosine schedule and the loss read every step in all; the Trainer
writes its events too. The ceiling is the bare loop. The first round warms up and is left out. Goals: at most 3 % more
for a step of 5 ms; at `--width 32` at most 25 microseconds more, with guards 60.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any

import torch
from torch import nn

import headrace as hr

BATCH_SIZE = 64
FEATURES = 256


class Repeated:
    """A loader that gives the same few batches again and again, at no cost."""

    epochs = None
    global_batch_size = BATCH_SIZE
    full_batches = True

    def __init__(self, batches: list[dict[str, Any]], steps: int) -> None:
        self.batches = batches
        self.steps_per_epoch = steps
        self.given = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            self.given += 1
            yield self.batches[self.given % len(self.batches)]

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]

    def meters(self) -> dict[str, Any]:
        return {"stages": {}}


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for _ in range(4) for layer in (nn.Linear(width, width), nn.GELU())]
    return nn.Sequential(nn.Linear(FEATURES, width), *layers, nn.Linear(width, 10))


def loss(output: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return nn.functional.cross_entropy(output, batch["cls"])


def bare(width: int, loader: Repeated, steps: int, clip: float | None) -> float:
    """Seconds of `steps` steps, written by hand."""
    model = network(width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    params = list(model.parameters())
    batches = iter(loader)
    began = time.perf_counter()
    for step in range(steps):
        batch = next(batches)
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = loss(model(batch["x"]), batch)
        value.backward()
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(params, clip)
            assert math.isfinite(norm.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value.item()
    return time.perf_counter() - began


def trained(width: int, loader: Repeated, steps: int, clip: float | None, guards: hr.Guards | None = None) -> float:
    """Seconds of as many steps by the Trainer, as its own events count them."""
    with tempfile.TemporaryDirectory() as run_dir:
        trainer = hr.Trainer(
            network(width),
            loss,
            loader,
            inputs=lambda batch: batch["x"],
            optimizer=hr.adamw(1e-3),
            schedule=hr.cosine(),
            clip_grad_norm=clip,
            guards=guards,
            run_dir=run_dir,
            device="cpu",
        )
        trainer.fit(steps=steps)
        from headrace.telemetry import read_events

        events = [event for event in read_events(f"{run_dir}/events.jsonl") if event["event"] == "step"]
    return sum(event["sec"] - event["checkpoint_sec"] for event in events)


def guarded(width: int, loader: Repeated, steps: int, clip: float | None) -> float:
    """The same with the default guards."""
    return trained(width, loader, steps, clip, hr.Guards())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=472, help="of the network; decides how long a step is")
    parser.add_argument("--no-clip", action="store_true", help="no clipping; guards then measure the norm themselves")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batches = [{"x": torch.randn(BATCH_SIZE, FEATURES), "cls": torch.randint(10, (BATCH_SIZE,))} for _ in range(8)]
    sides: list[tuple[str, Callable[..., float]]] = [("bare", bare), ("trainer", trained), ("guarded", guarded)]
    seconds: dict[str, list[float]] = {name: [] for name, _ in sides}
    clip = None if options.no_clip else 1.0
    for number in range(options.rounds + 1):
        for name, run in sides if number % 2 else reversed(sides):
            sec = run(options.width, Repeated(batches, options.steps), options.steps, clip)
            if number:
                seconds[name].append(sec / options.steps)
    ceiling = statistics.median(seconds["bare"])
    print(f"ceiling: bare loop {ceiling * 1e3:.3f} ms a step (median of {options.rounds} rounds of {options.steps})")
    for name in ("trainer", "guarded"):
        own = statistics.median(seconds[name])
        ratios = sorted(b / a for a, b in zip(seconds["bare"], seconds[name], strict=True))
        print(f"{name}: {own * 1e3:.3f} ms a step, {(own - ceiling) * 1e6:+.0f} microseconds")
        print(f"ratio: median {statistics.median(ratios):.4f}, from {ratios[0]:.4f} to {ratios[-1]:.4f}")
    print(
        json.dumps(
            {
                **{f"{name}_ms": [round(sec * 1e3, 4) for sec in found] for name, found in seconds.items()},
                "config": vars(options),
                "machine": platform.platform(),
                "torch": str(torch.__version__),
                "date": date.today().isoformat(),
            }
        )
    )


if __name__ == "__main__":
    main()
