"""Training on a GPU: the Trainer beside a bare hand-written loop, in tokens/s or images/s, and MFU.

    python benchmarks/gpu_train.py [--model gpt2] [--rounds 5] [--steps 30] [--batch-size N] [--no-compile]
    python benchmarks/gpu_train.py --device cpu --tiny     # to see that it works: its figures mean nothing

GPT-2 124M on 16 windows of 1,024 tokens, a 1.1 billion parameter Llama on 4 of 2,048, ResNet-50 on 256 images of 224,
channels last. All under bfloat16 autocast with fp32 weights, compiled, with the same fused optimizer, and of language
models gradients clipped; batches lie on the device. Both set a rate for every step by a cosine. The bare loop compiles
the whole model by one call and reads nothing of a step; the Trainer compiles block by block where blocks are alike, and
reads every step's loss one step late. Both models live on through all rounds, which take turns; each round times so
many steps behind a few that are not counted, from the device's end of one to its end of another. Goal: at least 0.98 of
the bare loop.

MFU is the share of the device's peak rate, dense bfloat16, that a step's operations come to, forward and backward.
They are counted once, by torch.utils.flop_counter on device meta; attention counts whole though it is causal.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import headrace as hr
from gpu_models import GPT2_124M, LLAMA_1B, TINY, Gpt2, Llama, Shape, resnet
from headrace.train.flops import peak_flops
from measure import Spread, finish, ratio, rounds, scaled

WARM_UP_STEPS = 4
"""Of each round."""
TOTAL_STEPS = 100_000
"""Of the schedule: more than are made."""

Batch = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is trained, the same by both."""

    title: str
    unit: str
    make: Callable[[], nn.Module]
    batch: Callable[[int, torch.device], Batch]
    batch_size: int
    per_sample: int
    """Tokens of a sample, or 1 for an image."""
    optimizer: Any
    clip: float | None
    memory_format: torch.memory_format = torch.contiguous_format


class Resident:
    """A loader of one batch that lies on the device; knows when the device had done some steps with it."""

    epochs, full_batches = None, True

    def __init__(self, batch: Batch, batch_size: int, device: torch.device) -> None:
        self.batch, self.global_batch_size, self.steps_per_epoch = batch, batch_size, TOTAL_STEPS
        self._device = device
        self._given = 0
        self._marks: dict[int, float] = {}

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self._given += 1
            if self._given in self._marks:
                self._marks[self._given] = self._now()
            yield self.batch

    def timed(self, run: Callable[[int], object], steps: int) -> float:
        """Steps a second while `run` takes so many batches, some before them not counted."""
        first = self._given + WARM_UP_STEPS + 1
        self._marks = {first: 0.0, first + steps: 0.0}
        run(WARM_UP_STEPS + steps + 1)
        began, ended = self._marks.values()
        return steps / (ended - began)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._given = state["given"]

    def meters(self) -> dict[str, Any]:
        return {"stages": {}}


def of_tokens(output: Tensor, batch: Batch) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1).float(), batch["next"].flatten())


def of_classes(output: Tensor, batch: Batch) -> Tensor:
    return functional.cross_entropy(output.float(), batch["next"])


def inputs(batch: Batch) -> Tensor:
    return batch["x"]


def language(title: str, kind: type[nn.Module], shape: Shape, batch_size: int) -> Task:
    def batch(size: int, device: torch.device) -> Batch:
        tokens = torch.randint(shape.vocabulary, (size, shape.length + 1), device=device)
        return {"x": tokens[:, :-1].contiguous(), "next": tokens[:, 1:].contiguous()}

    optimizer = hr.adamw(3e-4, weight_decay=0.1)
    return Task(title, "tokens/s", lambda: kind(shape), batch, batch_size, shape.length, optimizer, 1.0)


def images(title: str, depths: tuple[int, ...], side: int, batch_size: int, width: int = 64) -> Task:
    classes = 1000

    def batch(size: int, device: torch.device) -> Batch:
        x = torch.randn(size, 3, side, side, device=device, dtype=torch.bfloat16)
        return {
            "x": x.contiguous(memory_format=torch.channels_last),
            "next": torch.randint(classes, (size,), device=device),
        }

    optimizer = hr.sgd(1e-3, momentum=0.9, weight_decay=1e-4)
    make = lambda: resnet(depths, classes, width)  # noqa: E731
    return Task(title, "images/s", make, batch, batch_size, 1, optimizer, None, torch.channels_last)


TASKS = {
    "gpt2": language("GPT-2 124M", Gpt2, GPT2_124M, 16),
    "llama": language("Llama, 1.1 billion parameters", Llama, LLAMA_1B, 4),
    "resnet50": images("ResNet-50", (3, 4, 6, 3), 224, 256),
}
TINY_TASKS = {
    "gpt2": language("a tiny GPT-2", Gpt2, TINY, 4),
    "llama": language("a tiny Llama", Llama, TINY, 4),
    "resnet50": images("a tiny ResNet", (1, 1), 32, 4, width=8),
}


def loss_of(task: Task) -> Callable[[Tensor, Batch], Tensor]:
    return of_tokens if task.unit == "tokens/s" else of_classes


def made(task: Task, device: torch.device) -> nn.Module:
    """The model with the same weights each time."""
    torch.manual_seed(0)
    return task.make().to(device, memory_format=task.memory_format)


def bare(task: Task, loader: Resident, compiled: bool, device: torch.device) -> Callable[[int], None]:
    """The loop as one writes it by hand; takes so many steps at a call."""
    model = made(task, device)
    optimizer = task.optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL_STEPS)
    forward, loss, params = torch.compile(model) if compiled else model, loss_of(task), list(model.parameters())

    def run(steps: int) -> None:
        for batch in itertools.islice(loader, steps):
            with torch.autocast(device.type, torch.bfloat16):
                value = loss(forward(inputs(batch)), batch)
            value.backward()
            if task.clip is not None:
                nn.utils.clip_grad_norm_(params, task.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def by_trainer(task: Task, loader: Resident, compiled: bool, device: torch.device) -> Callable[[int], None]:
    """The same by the Trainer."""
    trainer = hr.Trainer(
        made(task, device),
        loss_of(task),
        loader,
        inputs=inputs,
        optimizer=task.optimizer,
        schedule=hr.cosine(),
        precision="bf16",
        clip_grad_norm=task.clip,
        compile=compiled,
        steps=TOTAL_STEPS,
        device=device,
    )

    def run(steps: int) -> None:
        trainer.fit(steps=trainer.step + steps)

    return run


def operations(task: Task, batch_size: int) -> int:
    """Floating-point operations of a step, forward and backward, of the layers as they are written."""
    with torch.device("meta"):
        model, batch = task.make(), task.batch(batch_size, torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        x = inputs(batch)
        loss_of(task)(model(x.float() if x.is_floating_point() else x), batch).backward()
    return counter.get_total_flops()


def measured(task: Task, batch_size: int, options: argparse.Namespace, device: torch.device) -> dict[str, Spread]:
    """Both rates by turns, their ratio, and the Trainer's and the bare loop's share of the peak."""
    batch = task.batch(batch_size, device)
    sides = {}
    for name, side in (("bare", bare), ("Trainer", by_trainer)):
        loader = Resident(batch, batch_size, device)
        run = side(task, loader, options.compile, device)
        sides[name] = lambda loader=loader, run=run: loader.timed(run, options.steps)
    rates = rounds(sides, options.rounds)
    samples = batch_size * task.per_sample
    figures = {f"{name}, {task.unit}": scaled(rate, samples) for name, rate in rates.items()}
    figures["Trainer / bare"] = ratio(rates["Trainer"], rates["bare"])
    peak, flops = peak_flops("bf16", device), operations(task, batch_size)
    if peak is None:
        print(f"MFU: N/A, since the device's peak rate is not known; a step has {flops:.4g} operations")
        return figures
    return figures | {f"{name}, MFU": scaled(rate, flops / peak) for name, rate in rates.items()}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=TASKS, help="default: each in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="timed steps of a round")
    parser.add_argument("--batch-size", type=int, help="samples; default: the model's own")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models, rounds and steps so small that a CPU does them")
    options = parser.parse_args()
    if options.tiny:
        options.rounds, options.steps = 2, 3
    return options


def main() -> None:
    options = parsed()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_train.py measures on a CUDA device, and this machine has none: nothing was measured")
    if options.device == "cpu" and not options.tiny:
        sys.exit("gpu_train.py measures on a CUDA device: on the CPU it takes --tiny, to see that it works")
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    tasks = TINY_TASKS if options.tiny else TASKS
    for name in [options.model] if options.model else tasks:
        task = tasks[name]
        batch_size = options.batch_size or task.batch_size
        finish(
            f"{task.title}, batch {batch_size}, bfloat16 autocast, {'compiled' if options.compile else 'not compiled'}",
            measured(task, batch_size, options, device),
            **vars(options)
            | {"model": name, "batch_size": batch_size}
            | {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"},
        )
        torch.compiler.reset()


if __name__ == "__main__":
    main()
