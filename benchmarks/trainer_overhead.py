"""What the Trainer adds to a step: a bare PyTorch loop and the Trainer, same model, same batches, in turns.

    python benchmarks/trainer_overhead.py [--rounds 9] [--steps 200] [--threads 1] [--width 472] [--no-clip]
    python benchmarks/trainer_overhead.py --tiny

One process. Each round trains the same number of steps with the bare loop, the Trainer, and the Trainer with its
default guards (in alternating order), with the same optimizer, clipping, a cosine schedule and the loss read every step
in all; the Trainer writes its events too. The ceiling is the bare loop. The first round warms up and is left out.
Goal: at most 3 % more for a step of 5 ms.

`--tiny` is two layers and plain SGD, without clipping or a schedule, and asks peers too, as far as they are installed:
Lightning Fabric and Accelerate around the bare loop, which brings them no schedule, no record and no checkpoints. What
a microsecond is differs by machine, so the goal is one beside Fabric: 25/30 of what it adds, and with guards twice it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from torch import Tensor, nn

import headrace as hr
from headrace.telemetry import read_events

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


@dataclass(frozen=True)
class Task:
    """What is trained, the same by all sides."""

    width: int
    layers: int
    steps: int
    clip: float | None
    optimizer: Any
    schedule: Any
    batches: list[dict[str, Any]]

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        layers = [layer for _ in range(self.layers) for layer in (nn.Linear(self.width, self.width), nn.GELU())]
        return nn.Sequential(nn.Linear(FEATURES, self.width), nn.ReLU(), *layers, nn.Linear(self.width, 10))

    def loader(self) -> Repeated:
        return Repeated(self.batches, self.steps)


def loss(output: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return nn.functional.cross_entropy(output, batch["cls"])


def bare(task: Task) -> float:
    """Seconds a step, written by hand."""
    model = task.network()
    return looped(task, model, task.optimizer(model.parameters()), Tensor.backward)


def fabric(task: Task) -> float:
    """The same loop by Lightning Fabric."""
    from lightning.fabric import Fabric

    own = Fabric(accelerator="cpu", devices=1)
    model = task.network()
    model, optimizer = own.setup(model, task.optimizer(model.parameters()))
    return looped(task, model, optimizer, own.backward)


def accelerate(task: Task) -> float:
    """The same loop by Accelerate."""
    from accelerate import Accelerator

    own = Accelerator(cpu=True)
    model = task.network()
    model, optimizer = own.prepare(model, task.optimizer(model.parameters()))
    return looped(task, model, optimizer, own.backward)


def looped(task: Task, model: nn.Module, optimizer: Any, backward: Callable[[Tensor], Any]) -> float:
    params = list(model.parameters())
    batches = iter(task.loader())
    rates = [group["lr"] for group in optimizer.param_groups]
    began = time.perf_counter()
    for step in range(task.steps):
        batch = next(batches)
        if task.schedule is not None:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / task.steps))
        value = loss(model(batch["x"]), batch)
        backward(value)
        if task.clip is not None:
            norm = nn.utils.clip_grad_norm_(params, task.clip)
            assert math.isfinite(norm.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value.item()
    return (time.perf_counter() - began) / task.steps


def trained(task: Task, guards: hr.Guards | None = None) -> float:
    """Seconds a step by the Trainer, as its own events count them."""
    with tempfile.TemporaryDirectory() as run_dir:
        trainer = hr.Trainer(
            task.network(),
            loss,
            task.loader(),
            inputs=lambda batch: batch["x"],
            optimizer=task.optimizer,
            schedule=task.schedule,
            clip_grad_norm=task.clip,
            guards=guards,
            run_dir=run_dir,
            device="cpu",
        )
        trainer.fit(steps=task.steps)
        events = [event for event in read_events(f"{run_dir}/events.jsonl") if event["event"] == "step"]
    return sum(event["sec"] - event["checkpoint_sec"] for event in events) / task.steps


def guarded(task: Task) -> float:
    """The same with the default guards."""
    return trained(task, hr.Guards())


def task_of(options: argparse.Namespace) -> Task:
    batches = [{"x": torch.randn(BATCH_SIZE, FEATURES), "cls": torch.randint(10, (BATCH_SIZE,))} for _ in range(8)]
    if options.tiny:
        return Task(32, 0, max(1000, options.steps), None, hr.sgd(1e-3), None, batches)
    clip = None if options.no_clip else 1.0
    return Task(options.width, options.layers, options.steps, clip, hr.adamw(1e-3), hr.cosine(), batches)


def sides_of(options: argparse.Namespace) -> dict[str, Callable[[Task], float]]:
    sides: dict[str, Callable[[Task], float]] = {"bare": bare, "trainer": trained, "guarded": guarded}
    if options.tiny:
        peers = {"fabric": ("lightning", fabric), "accelerate": ("accelerate", accelerate)}
        sides |= {name: run for name, (package, run) in peers.items() if importlib.util.find_spec(package)}
    return sides


def show(seconds: dict[str, list[float]]) -> None:
    ceiling = statistics.median(seconds["bare"])
    print(f"ceiling: bare loop {ceiling * 1e6:.0f} microseconds a step, the median")
    for name in (name for name in seconds if name != "bare"):
        more = sorted(1e6 * (b - a) for a, b in zip(seconds["bare"], seconds[name], strict=True))
        ratio = statistics.median(b / a for a, b in zip(seconds["bare"], seconds[name], strict=True))
        print(f"{name}: {statistics.median(more):+.0f} ({more[0]:+.0f} to {more[-1]:+.0f}) usec, {ratio:.3f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=472, help="of the network; decides how long a step is")
    parser.add_argument("--layers", type=int, default=4, help="between the first and the last")
    parser.add_argument("--no-clip", action="store_true", help="no clipping; guards then measure the norm themselves")
    parser.add_argument("--tiny", action="store_true", help="the smallest step, beside peers; at least 1,000 steps")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task, sides = task_of(options), sides_of(options)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        order = list(sides.items())
        for name, run in order if number % 2 else reversed(order):
            sec = run(task)
            if number:
                seconds[name].append(sec)
    show(seconds)
    print(
        json.dumps(
            {
                **{f"{name}_usec": [round(sec * 1e6, 1) for sec in found] for name, found in seconds.items()},
                "config": vars(options),
                "machine": platform.platform(),
                "torch": str(torch.__version__),
                "date": date.today().isoformat(),
            }
        )
    )


if __name__ == "__main__":
    main()
