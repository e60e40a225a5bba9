"""Seconds from SIGKILL of a rank to the next completed step, on two CPU processes under `headrace train`.

    python benchmarks/restart.py [--rounds 5]

A small network on a loader in memory, a checkpoint every 10 steps. Each round is a run of its own: once it has a
checkpoint, rank 1 is killed, and the clock runs until the next attempt's first step is on record. `announced` is
the part of it until the attempt announces itself, which is mostly imports. The ceiling is the start of two interpreters
that import torch, as both ranks must at the same time. Aim: 15 s.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from headrace.telemetry import read_events
from measure import LIMIT_SEC, Spread, finish

RECIPE = """
import sys, time

sys.path.insert(0, {tests!r})
import problems as p


def recipe():
    def loss(output, batch):
        time.sleep(0.02)  # so that what is between kill and step is not lost in the file's writing
        return p.cross_entropy(output, batch)

    return p.trainer(loss=loss, steps=1_000_000, checkpoint_every=10)
"""
TESTS = Path(__file__).parents[1] / "tests/train"


def imports_sec() -> float:
    """Two interpreters at once that import torch."""
    began = time.perf_counter()
    for process in [subprocess.Popen([sys.executable, "-c", "import torch"]) for _ in range(2)]:
        process.wait()
    return time.perf_counter() - began


def restart_sec(folder: Path) -> tuple[float, float]:
    """From the kill to the new attempt's announcement, and to its first step."""
    (folder / "small.py").write_text(RECIPE.format(tests=str(TESTS)))
    command = [sys.executable, "-m", "headrace.cli.main", "train", "small.py", "--nproc", "2", "--run", "r"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            (start,) = wait_for(folder, 1, "checkpoint")
            killed = time.time()
            os.kill(start["pids"][1], signal.SIGKILL)
            starts = wait_for(folder, 2, "step")
            return starts[1]["time"] - killed, time.time() - killed
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(LIMIT_SEC)


def wait_for(folder: Path, attempts: int, kind: str) -> list[dict[str, Any]]:
    """The starts of so many attempts, once the last of them has written an event of the kind."""
    path, deadline = folder / "r/events.jsonl", time.monotonic() + LIMIT_SEC
    while time.monotonic() < deadline:
        events = list(read_events(path)) if path.exists() else []
        starts = [number for number, event in enumerate(events) if event["event"] == "start"]
        if len(starts) == attempts and any(event["event"] == kind for event in events[starts[-1] :]):
            return [events[number] for number in starts]
        time.sleep(0.02)
    raise TimeoutError(f"attempt {attempts} made no {kind} within {LIMIT_SEC} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            announced, stepped = restart_sec(Path(folder))
        figures = {
            "ceiling: imports of two processes, s": imports_sec(),
            "announced, s": announced,
            "next step, s": stepped,
        }
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    spreads = {name: Spread(tuple(values)) for name, values in found.items()}
    finish("from SIGKILL of a rank to the next step", spreads, rounds=options.rounds)


if __name__ == "__main__":
    main()
