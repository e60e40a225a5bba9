"""What looking at a run costs: the Trainer with a record and without, same model, same batches, in turns.

    python benchmarks/observing.py [--rounds 12] [--steps 300] [--width 472]

One process, steps of about 5 ms. With `--width` the length of a step is chosen. Each round trains the same number of
steps without a run folder (nothing is recorded), with one (every step's parts, the host's use, the feed's meters), and
with alarms and the sinks that are installed (TensorBoard, a Prometheus endpoint), in alternating order. Runs of one
process differ by more than what is looked for, so the Python of a step is timed by itself as well: the laps of the
CPU's clock (that of a GPU has events to record, too), and a step's line. Goals: at most 1 % of a step, and 10
microseconds of Python.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import headrace as hr
from headrace.telemetry import FILE_NAME, EventWriter
from headrace.train.clock import Clock
from headrace.train.record import Journal
from headrace.train.skipped import SkippedList
from headrace.train.tally import Totals
from measure import Spread, finish, ratio, scaled
from trainer_overhead import BATCH_SIZE, FEATURES, Task, loss

LINES = 20_000
"""Steps whose Python is timed by itself."""
LAPS = ("rest", "wait", "guard", "forward", "backward", "optimizer", "rest")


def seconds_a_step(task: Task, **observing: Any) -> float:
    """Of a run, from the first call of the loss to the last one: no start, no last checkpoint, no end."""
    began = ended = 0.0

    def timed(output: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        nonlocal began, ended
        ended = time.perf_counter()
        began = began or ended
        return loss(output, batch)

    trainer = hr.Trainer(
        task.network(), timed, task.loader(), inputs=lambda batch: batch["x"], optimizer=task.optimizer, **observing
    )
    trainer.fit(steps=task.steps)
    return (ended - began) / (task.steps - 1)


def unseen(task: Task) -> float:
    """Without a folder."""
    return seconds_a_step(task)


def recorded(task: Task) -> float:
    """With the run's record."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds_a_step(task, run_dir=folder)


def in_full(task: Task) -> float:
    """With alarms and sinks."""
    packages = {"tensorboard": "tensorboard", "prometheus:0": "prometheus_client"}
    sinks = [name for name, package in packages.items() if importlib.util.find_spec(package)]
    with tempfile.TemporaryDirectory() as folder:
        return seconds_a_step(task, run_dir=folder, alarms=hr.Alarms(), sinks=sinks)


def python_sec() -> float:
    """Of the laps of a step and its line in the record."""
    clock, totals = Clock(), Totals(64, 64.0, False, 0.5, {"accuracy": 0.9}, None)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(EventWriter(Path(folder) / FILE_NAME), SkippedList(None, 0, None))
        began = time.perf_counter()
        for step in range(1, LINES + 1):
            for kind in LAPS:
                clock.lap(kind)
            journal.step(step, 0, 1e-3, totals, clock.next_step(), None, None, {})
        return (time.perf_counter() - began) / LINES


def main() -> None:
    """Measure in turns, and print what each costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=472, help="of the network; decides how long a step is")
    options = parser.parse_args()
    torch.set_num_threads(1)
    batches = [{"x": torch.randn(BATCH_SIZE, FEATURES), "cls": torch.randint(10, (BATCH_SIZE,))} for _ in range(8)]
    task = Task(options.width, 4, options.steps, None, hr.sgd(1e-3), None, batches)
    sides: dict[str, Callable[[Task], float]] = {"unseen": unseen, "recorded": recorded, "in full": in_full}
    found: dict[str, list[float]] = {name: [] for name in (*sides, "python")}
    for number in range(options.rounds + 1):
        order = list(sides.items()) if number % 2 else list(reversed(sides.items()))
        seconds = {name: side(task) for name, side in order} | {"python": python_sec()}
        if number:  # the first warms up
            for name, sec in seconds.items():
                found[name].append(sec)
    spreads = {name: Spread(tuple(values)) for name, values in found.items()}
    figures = {"a step, unseen, ms": scaled(spreads["unseen"], 1e3)}
    figures |= {f"{name} / unseen": ratio(spreads[name], spreads["unseen"]) for name in ("recorded", "in full")}
    figures["laps and line of a step, microseconds"] = scaled(spreads["python"], 1e6)
    finish("what looking at a run costs", figures, **vars(options))


if __name__ == "__main__":
    main()
