"""What replicas send, and what it costs: gradients as they are, in bf16, by PowerSGD and top-k, on two gloo processes.

    python benchmarks/gradient_bytes.py [--rounds 5] [--steps 40] [--width 512] [--batch-size 256]

Two processes with one thread each train the same network on the same batches by each way in turns, warm-up steps of the
compression switched off. Printed of each: bytes that a rank hands to the collectives a step; milliseconds a step, and
of them communication that compute did not hide, with what compression computes at the end of the backward pass; the
share of the time with a collective under way that lay within the backward pass; the averages of a step with no compute
beside them; and the mean loss of the last ten steps. What one process waits for the other is communication too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import headrace as hr
from au_ranks import Share, free_port, rank_environment
from headrace.rank import resolve_rank
from headrace.telemetry import read_events
from headrace.train.parallel import Reducer
from headrace.train.parallel.compression.wire import Wire
from headrace.train.world import World
from measure import LIMIT_SEC, Spread, finish, given, ratio

FEATURES, CLASSES = 64, 10
WAYS = {
    "plain": None,
    "bf16": "bf16",
    "power_sgd": hr.power_sgd(2, warmup_steps=0),
    "top_k": hr.top_k(0.01, warmup_steps=0),
}
BUCKETS_BYTES = (2**20, 25 * 2**20)
"""As DistributedDataParallel makes them: the first is small, so that sending begins early."""


class Questions:
    """Endless global batches about one linear rule; a rank's rows are drawn by its number."""

    epochs, full_batches, steps_per_epoch = None, True, 1_000

    def __init__(self, rows: int, rank: int, world_size: int) -> None:
        self.rows, self.rank = rows, rank
        self.global_batch_size = rows * world_size
        rule = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(7))
        draw = torch.Generator().manual_seed(rank)
        inputs = [torch.randn(rows, FEATURES, generator=draw) for _ in range(8)]
        self.batches = [{"x": x, "cls": (x @ rule).argmax(1)} for x in inputs]
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
    return nn.Sequential(nn.Linear(FEATURES, width), *layers, nn.Linear(width, CLASSES))


@dataclass
class Bucket:
    """Gradients of some parameters in one tensor, as DistributedDataParallel hands them over."""

    params: list[nn.Parameter]
    last: bool

    def __post_init__(self) -> None:
        self.flat = torch.randn(sum(param.numel() for param in self.params))

    def buffer(self) -> Tensor:
        return self.flat

    def gradients(self) -> list[Tensor]:
        pieces = self.flat.split([param.numel() for param in self.params])
        return [piece.view(param.shape) for piece, param in zip(pieces, self.params, strict=True)]

    def parameters(self) -> list[nn.Parameter]:
        return self.params

    def is_last(self) -> bool:
        return self.last


def buckets(model: nn.Module) -> list[Bucket]:
    groups: list[list[nn.Parameter]] = [[]]
    for param in reversed(list(model.parameters())):
        groups[-1].append(param)
        if sum(param.nbytes for param in groups[-1]) >= BUCKETS_BYTES[min(len(groups) - 1, 1)]:
            groups.append([])
    groups = [group for group in groups if group]
    return [Bucket(group, number == len(groups)) for number, group in enumerate(groups, start=1)]


class Watch:
    """When collectives were under way, and when the last bucket of each backward pass was handed over."""

    def __init__(self) -> None:
        self.flights: list[list[float]] = []
        self.ends: list[float] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every `Wire` and `Reducer` that is used meanwhile."""
        begun, reduce = Wire._begun, Reducer.reduce

        def noted_begun(work: Any) -> dist.Work:
            flight = [time.perf_counter(), math.inf]
            self.flights.append(flight)
            work.get_future().add_done_callback(lambda _: flight.__setitem__(1, time.perf_counter()))
            return begun(work)

        def noted_reduce(reducer: Reducer, bucket: Any) -> Any:
            if bucket.is_last():
                self.ends.append(time.perf_counter())
            return reduce(reducer, bucket)

        Wire._begun, Reducer.reduce = staticmethod(noted_begun), noted_reduce  # type: ignore[method-assign]
        try:
            yield
        finally:
            Wire._begun, Reducer.reduce = staticmethod(begun), reduce  # type: ignore[method-assign]

    def share_hidden(self) -> float:
        """Of the time with a collective under way, the share before the end of the backward pass that it began in."""
        hidden = total = 0.0
        until = 0.0
        for began, ended in self.flights:
            began = max(began, until)
            until = max(until, ended)
            passes = [end for end in self.ends if end >= began]
            total += max(0.0, ended - began)
            hidden += max(0.0, min(ended, passes[0]) - began) if passes else 0.0
        return hidden / total


def alone(way: str, options: argparse.Namespace) -> float:
    """Seconds of the averages of a step with no compute beside them."""
    model = network(options.width)
    reducer = Reducer(WAYS[way], model, World(dist.get_rank(), dist.get_world_size(), torch.device("cpu")))
    parts = buckets(model)
    took = []
    for _ in range(options.steps // 3):
        dist.barrier()
        began = time.perf_counter()
        for future in [reducer.reduce(part) for part in parts]:
            future.wait()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def trained(way: str, run_dir: Path, options: argparse.Namespace) -> dict[str, float]:
    """Medians over the steps of one run, by its record."""
    place = resolve_rank()
    trainer = hr.Trainer(
        network(options.width),
        lambda output, batch: nn.functional.cross_entropy(output, batch["cls"]),
        Questions(options.batch_size, place.rank, place.world_size),
        inputs=lambda batch: batch["x"],
        optimizer=hr.adamw(1e-3),
        compression=WAYS[way],
        run_dir=run_dir,
        device="cpu",
    )
    watch = Watch()
    with watch.watching():
        trainer.fit(steps=options.steps)
    steps = [event for event in read_events(run_dir / "events.jsonl") if event["event"] == "step"]
    return {
        "ms": 1e3 * statistics.median(step["sec"] - step["checkpoint_sec"] for step in steps[5:]),
        "exposed_ms": 1e3 * statistics.median(step["communication_sec"] for step in steps[5:]),
        "bytes": float(steps[-1].get("sent_bytes", 0)),
        "hidden": watch.share_hidden(),
        "loss": statistics.mean(step["loss"] for step in steps[-10:]),
    }


def measured(folder: Path, options: argparse.Namespace) -> None:
    """On one rank: all ways in turns, round by round, the first not kept. Rank 0 leaves the figures in FOLDER."""
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    names = list(WAYS)
    for number in range(options.rounds + 1):
        turn = number % len(names)
        for way in names[turn:] + names[:turn]:
            figures = trained(way, folder / f"{way}-{number}", options)
            figures["alone_ms"] = 1e3 * alone(way, options)
            if number:
                found[way].append(figures)
    if resolve_rank().rank == 0:
        (folder / "figures.json").write_text(json.dumps(found))


def on_ranks(world_size: int, options: argparse.Namespace) -> dict[str, dict[str, Spread]]:
    """way -> name -> its values, a round each."""
    command = [sys.executable, __file__]
    for name, value in given(options).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with tempfile.TemporaryDirectory() as folder:
        shares, port = [Share(rank, world_size) for rank in range(world_size)], free_port()
        environments = [os.environ | {"OMP_NUM_THREADS": "1"} | rank_environment(share, port) for share in shares]
        ranks = [subprocess.Popen([*command, "--here", folder], env=environment) for environment in environments]
        try:
            codes = [rank.wait(LIMIT_SEC * (options.rounds + 1)) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        if any(codes):
            raise SystemExit(f"a rank ended with {codes}")
        found = json.loads((Path(folder) / "figures.json").read_text())
    return {
        way: {name: Spread(tuple(one[name] for one in rounds)) for name in rounds[0]} for way, rounds in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--width", type=int, default=512, help="of the network")
    parser.add_argument("--batch-size", type=int, default=256, help="of a rank")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        measured(options.here, options)
        return
    by_way = on_ranks(2, options)
    plain = by_way["plain"]
    figures: dict[str, Spread] = {}
    for way, found in by_way.items():
        figures |= {
            f"{way}: bytes a step": found["bytes"],
            f"{way}: ms a step": found["ms"],
            f"{way}: its time over plain's": ratio(found["ms"], plain["ms"]),
            f"{way}: exposed communication, ms": found["exposed_ms"],
            f"{way}: the same averages alone, ms": found["alone_ms"],
            f"{way}: share hidden": found["hidden"],
            f"{way}: mean loss of the last ten steps": found["loss"],
        }
    finish("gradients of two replicas on gloo", figures, **given(options))


if __name__ == "__main__":
    main()
