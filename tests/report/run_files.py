"""Realistic runs, written by the library's own event writer: what the tests of the report read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

PARTS = ("wait", "copy", "compute", "communication", "checkpoint", "rest")
PIDS = [4100, 4101, 4102, 4103]
"""Of the processes of a made-up run, by rank."""


class Clock:
    """Seconds since the epoch that move only when told to."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0


class RunFile:
    """Writes events as a trainer would, with a clock of its own."""

    def __init__(self, folder: Path, clock: Clock | None = None, seed: int = 0, name: str = "events.jsonl") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self.clock = clock or Clock()
        self.rng = np.random.default_rng(seed)

    def write(self, event: str, **fields: Any) -> None:
        line = orjson.dumps({"event": event, "time": self.clock.now, **fields}, option=orjson.OPT_SERIALIZE_NUMPY)
        with open(self.path, "ab") as file:
            file.write(line + b"\n")

    def write_many(self, events: Iterator[dict[str, Any]]) -> None:
        with open(self.path, "ab") as file:
            file.writelines(orjson.dumps(event) + b"\n" for event in events)

    def start(self, step: int = 0, attempt: int = 0, **changes: Any) -> None:
        fields = {
            "attempt": attempt,
            "world_size": 2,
            "pids": PIDS[:2],
            "step": step,
            "resumed_from": f"checkpoints/step-{step:08d}" if step else None,
            "total_steps": 600,
            "mesh": "dp",
            "precision": "bf16",
            "config": {
                "recipe": "digits.py",
                "settings": {"learning_rate": 3e-3, "batch_size": 128, "data": "digits/train"},
                "optimizer": {"name": "AdamW", "weight_decay": 0.01, "betas": [0.9, 0.95]},
            },
            "versions": {"headrace": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
            "machine": {"host": "node-7", "cpu_count": 16, "memory_bytes": 137_438_953_472, "device": "NVIDIA H200"},
            "global_batch_size": 256,
        }
        self.write("start", **{**fields, **changes})
        self.clock.now += 1.5

    def step(
        self, step: int, loss: float | None = None, batch: int = 256, epoch: int | None = None, **parts: float
    ) -> None:
        parts = {f"{name}_sec": parts.get(name, 0.0) for name in PARTS}
        sec = sum(parts.values())
        self.clock.now += sec
        self.write(
            "step",
            step=step,
            epoch=(step - 1) // 60 if epoch is None else epoch,
            loss=loss,
            lr=3e-3 * min(1, step / 40) * (0.5 + 0.5 * math.cos(math.pi * min(1, step / 600))),
            samples=batch,
            metrics={"accuracy": 1 - math.exp(-step / 90) * 0.9} if step % 7 else {},
            sec=sec,
            **parts,
        )

    def feed(self, step: int, busy: dict[str, float], num_items: int, threads: int = 2) -> None:
        stages = {
            name: {
                "items": num_items,
                "bytes": num_items * (117_000 if name != "collate" else 150_528),
                "busy_sec": sec,
                "wait_sec": 0.3 * sec,
                "threads": threads if name == "transform" else 1,
            }
            for name, sec in busy.items()
        }
        self.write("feed", step=step, stages=stages, threads=threads, dropped=12, padded=0, skipped=0)


def loss_at(step: int, rng: np.random.Generator) -> float:
    return 0.04 + 2.3 * math.exp(-step / 70) * float(rng.lognormal(0, 0.16))


def write_run(folder: Path, num_steps: int = 600, crash_at: int | None = 330, **parts: float) -> Path:
    """A run of 600 steps with a crash and a restart; `parts` are mean seconds a step."""
    run = RunFile(folder)
    parts = parts or {"wait": 0.012, "copy": 0.002, "compute": 0.031, "communication": 0.006, "rest": 0.002}
    run.start(total_steps=num_steps)
    last_checkpoint = _train(run, 1, crash_at or num_steps, num_steps, parts, 0)
    if crash_at:
        run.clock.now += 14
        run.start(step=last_checkpoint, attempt=1, total_steps=num_steps)
        _train(run, last_checkpoint + 1, num_steps, num_steps, parts, last_checkpoint)
    run.write(
        "end", step=num_steps, epochs=10, samples=num_steps * 256, sec=60.0, loss=0.05, metrics={"accuracy": 0.982}
    )
    return folder


def _train(run: RunFile, first: int, last: int, total: int, parts: dict[str, float], began: int) -> int:
    saved = began
    for step in range(first, last + 1):
        noise = {name: sec * float(run.rng.lognormal(0, 0.12)) for name, sec in parts.items()}
        if step == first:
            noise["wait"], noise["rest"] = noise.get("wait", 0) + 0.9, noise.get("rest", 0) + 0.6
        if step % 100 == 0:
            noise["checkpoint"] = 0.11
        run.step(step, loss_at(step, run.rng), **noise)
        if step % 100 == 0:
            saved = step
            run.write("checkpoint", step=step, path=f"checkpoints/step-{step:08d}", sec=0.11, bytes=12_400_000)
        if step % 60 == 0:
            run.clock.now += 0.8
            accuracy = 1 - 0.9 * math.exp(-step / 80)
            run.write(
                "evaluate",
                step=step,
                epoch=step // 60 - 1,
                loss=0.06 + 2.2 * math.exp(-step / 70),
                metrics={"accuracy": accuracy},
                samples=360,
                sec=0.8,
            )
        if step % 20 == 0:
            done = step - began
            busy = {"read": 0.004, "verify": 0.001, "transform": 0.094, "collate": 0.003}
            run.feed(step, {name: sec * done for name, sec in busy.items()}, done * 256)
    return saved


def long_run(folder: Path, num_steps: int) -> Path:
    """Many steps, quickly written: one of them with a loss of 1000, and one that took 30 s."""
    run = RunFile(folder)
    run.start(total_steps=num_steps)
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.2, num_steps)

    def steps() -> Iterator[dict[str, Any]]:
        for step in range(1, num_steps + 1):
            sec = 0.01 * float(noise[step - 1])
            loss = 1000.0 if step == num_steps * 2 // 3 else 2 * float(noise[step - 1])
            wait = 30.0 if step == num_steps // 3 else 0.1 * sec
            yield {
                "event": "step",
                "time": run.clock.now + step * 0.01,
                "step": step,
                "epoch": step // 10_000,
                "loss": loss,
                "lr": 1e-3,
                "samples": 64,
                "metrics": {},
                "sec": 0.9 * sec + wait,
                "wait_sec": wait,
                "copy_sec": 0.0,
                "compute_sec": 0.9 * sec,
                "communication_sec": 0.0,
                "checkpoint_sec": 0.0,
                "rest_sec": 0.0,
            }

    run.write_many(steps())
    return folder
