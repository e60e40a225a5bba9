"""How every benchmark here measures: rounds in which all candidates take turns, medians, spreads, and the machine.

Machines are shared and change speed; what is compared is measured in one run, by turns, and quoted as a ratio.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import headrace

SECONDS = 3.0
"""Of each measurement, after its first batches."""
WARM_UP_BATCHES = 8
"""The slots' first touch, processes that start, the page cache."""
LIMIT_SEC = 300
"""Of a process that measures: one that hangs is an error."""


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one rate."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value to quote."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:,.4g} ({min(self.values):,.4g} to {max(self.values):,.4g})"


def rounds(candidates: Mapping[str, Callable[[], float]], num_rounds: int) -> dict[str, Spread]:
    """Each candidate's rate in each round, after one round that is not counted; the order turns from round to round."""
    names = list(candidates)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(num_rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            rate = candidates[name]()
            if number:
                rates[name].append(rate)
                print(f"  round {number}/{num_rounds} {name}: {rate:,.4g}", file=sys.stderr)
    return {name: Spread(tuple(values)) for name, values in rates.items()}


def ratio(a: Spread, b: Spread) -> Spread:
    """a over b, round by round."""
    return Spread(tuple(x / y for x, y in zip(a.values, b.values, strict=True)))


def scaled(spread: Spread, factor: float) -> Spread:
    """The same in another unit."""
    return Spread(tuple(factor * value for value in spread.values))


def delivered(batches: Iterable[Any], amount: Callable[[Any], float], seconds: float = SECONDS) -> float:
    """What comes a second out of an endless iteration, after its first batches; `amount` is that of one batch."""
    total, began = 0.0, time.perf_counter()
    for number, batch in enumerate(batches):
        if number < WARM_UP_BATCHES:
            began = time.perf_counter()
            continue
        total += amount(batch)
        if time.perf_counter() - began > seconds:
            return total / (time.perf_counter() - began)
    raise AssertionError("an endless iteration ended")


def together(rate: Callable[[int], float], processes: int) -> float:
    """The sum of the rates of so many processes at once, each of which is told its number."""
    with multiprocessing.Pool(processes) as pool:
        return sum(pool.map(rate, range(processes)))


def in_own_process(script: str, options: argparse.Namespace, *here: str) -> float:
    """The rate that a benchmark prints last when it is called again with its options and `--here` so and so."""
    command = [sys.executable, script, "--here", *here]
    for name, value in given(options).items():
        values = value if isinstance(value, list) else [value]
        command += [f"--{name.replace('_', '-')}", *map(str, values)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=LIMIT_SEC)
    return float(json.loads(done.stdout.splitlines()[-1]))


def given(options: argparse.Namespace) -> dict[str, Any]:
    """A benchmark's options but for `--here`, which tells a process what to measure."""
    return {name: value for name, value in vars(options).items() if name != "here" and value is not None}


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    models = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy")},
        "headrace": headrace.__version__,  # also of a source tree that is not installed
    }


def finish(claim: str, figures: Mapping[str, Spread], **inputs: object) -> None:
    """Print the table, and one JSON line with the figures and all that they depend on."""
    print(f"\n{claim}")
    for name, spread in figures.items():
        print(f"  {name:<48} {spread}")
    values = {name: {"median": s.median, "values": list(s.values)} for name, s in figures.items()}
    print(json.dumps({"claim": claim, "figures": values, "inputs": inputs, "machine": machine()}))


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
