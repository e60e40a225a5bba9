"""One run with a bottleneck put into it, for `verdicts.py`: `python verdict_run.py CASE.json RUN`, once a rank.

The device is a sleep in the loss, as MLPerf Storage simulates one; what bounds the run is real work, a real store or a
sleep, as the case says.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import headrace as hr
from headrace.rank import resolve_rank

RANK = int(os.environ.get("RANK", "0"))


class Model(nn.Module):
    """Two layers, and `millions` of parameters that take part in the loss."""

    def __init__(self, millions: float, halves: tuple[float, float]) -> None:
        super().__init__()
        self.first = Slow(16, 16, halves[0])
        self.second = Slow(16, 4, halves[1])
        self.weights = nn.Parameter(torch.zeros(int(millions * 1e6))) if millions else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.second(self.first(x))
        return found if self.weights is None else found + self.weights.sum()


class Slow(nn.Linear):
    """A layer that takes `sec` of a device."""

    def __init__(self, inputs: int, outputs: int, sec: float) -> None:
        super().__init__(inputs, outputs)
        self.sec = sec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.sec:
            time.sleep(self.sec)
        return super().forward(x)


def slept(sec: float) -> Any:
    def change(sample: dict[str, Any]) -> dict[str, Any]:
        time.sleep(sec)
        return sample

    return change


def burnt(sec: float) -> Any:
    """Python code that takes so long alone: threads take the interpreter's lock from each other."""

    def change(sample: dict[str, Any]) -> dict[str, Any]:
        until, sums = time.thread_time() + sec, 0
        while time.thread_time() < until:
            sums += sum(range(200))
        return sample

    return change


def small(sample: dict[str, Any]) -> dict[str, Any]:
    """What the model gets."""
    return {"x": np.full(16, len(sample) % 7, np.float32), "y": 1}


def slow_collate(sec: float) -> Any:
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        time.sleep(sec)
        return {"x": np.stack([one["x"] for one in samples]), "y": np.array([one["y"] for one in samples])}

    return collate


def loader(case: dict[str, Any]) -> hr.Loader:
    stream = hr.Stream(hr.open(case["data"]), epochs=None)
    if case.get("decode"):
        stream = stream.decode()
    if case.get("sample_sec"):
        stream = stream.map(slept(case["sample_sec"]))
    if case.get("burn_sec"):
        stream = stream.map(burnt(case["burn_sec"]))
    collate = slow_collate(case["collate_sec"]) if case.get("collate_sec") else None
    options = {"threads": case.get("threads"), "memory": case.get("memory")}
    size = case.get("batch_size", 8) * resolve_rank().world_size // case.get("copies", 1)
    return hr.Loader(stream.map(small), global_batch_size=size, collate=collate, cache_decoded=None, **options)


def main(case: dict[str, Any], run_dir: Path) -> None:
    torch.set_num_threads(1)
    slow = case.get("slow_rank_sec", 0.0) if case.get("slow_rank") == RANK else 0.0

    def loss(output: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        if device := case.get("step_sec", 0.0) + slow:
            time.sleep(device)
        return nn.functional.cross_entropy(output, batch["y"])

    trainer = hr.Trainer(
        Model(case.get("millions", 0.0), tuple(case.get("halves_sec", (0.0, 0.0)))),
        loss,
        loader(case),
        inputs=lambda batch: batch["x"],
        optimizer=hr.sgd(1e-6),
        steps=1_000_000,
        run_dir=run_dir,
        mesh=case.get("mesh", "dp"),
        checkpoint_every=case.get("checkpoint_every"),
        checkpoint_async=case.get("checkpoint_async", False),
        compression=case.get("compression"),
        guards=hr.Guards(**case["guards"]) if case.get("guards") else None,
        micro_batch_size=case.get("micro_batch_size"),
        hang_timeout_sec=None,
    )
    trainer.stop_after_sec = case["seconds"]
    trainer.fit()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
