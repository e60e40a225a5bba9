"""The order of 10^12 samples in 10^6 shards: time and memory to plan any position, and the cost a sample.

    python benchmarks/order_scale.py [--rounds 5]

Each round of each case is a fresh process that has the manifest's columns (samples and bytes of each shard) and nothing
else. `a position` is the time from there to the place of one sample of some epoch; `a first batch` that of the feed to
what it must know before it reads: the runs and the 8,192 positions that a rank plans at once, for a random rank and
position. `a sample` is the cost of going on from there, runs included, over 2 million samples. The ceiling of the first
two is one pass over the columns, that of the last one SplitMix64 hash a sample.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import numpy as np

from headrace.order import Order
from headrace.order.keyed import I64, hash_sequence
from measure import Spread, finish, rounds

NUM_SHARDS, NUM_SAMPLES = 10**6, 10**12
AT_ONCE, GONE_ON = 8192, 2_000_000
CASES = {
    "48 partitions, 1 rank": {"partitions": 48, "world_size": 1},
    "uneven shards": {"partitions": 48, "world_size": 1, "uneven": True},
    "6,144 partitions, 128 ranks": {"partitions": 6144, "world_size": 128},
    "67 bytes a sample": {"partitions": 48, "world_size": 1, "sample_bytes": 67},
    "100 kB a sample": {"partitions": 48, "world_size": 1, "sample_bytes": 100_000},
    "window 0": {"partitions": 48, "world_size": 1, "window": 0},
    "window 1,000,000": {"partitions": 48, "world_size": 1, "window": 1_000_000},
}


def shard_samples(uneven: bool) -> I64:
    """Samples of each shard; uneven ones from 1 to a fifth of the dataset (a Pareto distribution without a mean)."""
    if not uneven:
        return np.full(NUM_SHARDS, NUM_SAMPLES // NUM_SHARDS)
    weights = np.random.default_rng(0).pareto(0.8, NUM_SHARDS)
    samples = np.maximum(1, (weights / weights.sum() * NUM_SAMPLES).astype(np.int64))
    samples[np.argmax(samples)] += NUM_SAMPLES - samples.sum()
    return samples


def plan(
    seed: int,
    partitions: int,
    world_size: int,
    uneven: bool = False,
    sample_bytes: int = 1000,
    window: int | None = None,
) -> dict[str, float]:
    """What one fresh process measures."""
    samples = shard_samples(uneven)
    num_bytes = samples * sample_bytes
    rng = np.random.default_rng(seed)
    before = peak_mib()

    def order() -> Order:
        return Order(samples, num_bytes, seed, True, partitions, window=window)

    figures = timed("a position", lambda: order().epoch(3).locate(rng.integers(0, NUM_SAMPLES, 1)))
    # The last position of the epoch's first 9/10, so that enough samples follow.
    rank, start = int(rng.integers(world_size)), int(rng.integers(NUM_SAMPLES * 9 // 10)) // world_size * world_size
    epoch, stop = order().epoch(3), start + AT_ONCE * world_size
    mine = np.arange(start + rank, stop, world_size)
    runs = epoch.runs(rank, world_size, start)
    figures |= timed("a first batch", lambda: (next(runs), epoch.locate(mine)))
    epoch = order().epoch(3)

    def go_on() -> None:
        end = start + GONE_ON * world_size
        for first in range(0, GONE_ON, AT_ONCE):
            epoch.locate(mine + first * world_size)
        sum(1 for _ in takewhile(lambda run: run.need < end, epoch.runs(rank, world_size, start)))

    figures |= timed("a sample", go_on, 1e6 / GONE_ON, "us")
    return figures | {"memory beyond the columns, MB (10^6 bytes)": (peak_mib() - before) * 2**20 / 1e6}


def timed(name: str, function: Callable[[], object], times: float = 1e3, unit: str = "ms") -> dict[str, float]:
    """How long it takes by the clock, and how long of that this process had a core."""
    began, cpu_began = time.perf_counter(), time.process_time()
    function()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    return {f"{name}, {unit}": seconds * times, f"{name}, {unit} of a core": cpu_seconds * times}


def ceiling() -> dict[str, float]:
    """What the machine needs for the least that planning could do."""
    samples = shard_samples(uneven=False)
    num_bytes = samples * 1000
    index = np.arange(AT_ONCE, dtype=np.uint64)
    key = np.zeros(1, np.uint64)
    figures = timed("one pass over the columns", lambda: (samples.sum(), num_bytes.sum()))
    lots = range(0, GONE_ON, AT_ONCE)
    return figures | timed("a hash", lambda: [hash_sequence(key, index) for _ in lots], 1e6 / GONE_ON, "us")


def peak_mib() -> float:
    """What this process has held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        case, seed = options.one
        print(json.dumps(ceiling() if case == "ceiling" else plan(int(seed), **CASES[case])))
        return
    results: dict[str, list[dict[str, float]]] = {case: [] for case in ("ceiling", *CASES)}

    def fresh(case: str) -> float:
        command = [sys.executable, __file__, "--one", case, str(len(results[case]))]
        results[case].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        return next(iter(results[case][-1].values()))

    rounds({case: lambda case=case: fresh(case) for case in results}, options.rounds)
    figures = {
        f"{case}: {name}": Spread(tuple(result[name] for result in kept[1:]))
        for case, kept in results.items()
        for name in kept[0]
    }
    finish("10^12 samples in 10^6 shards: planning", figures, rounds=options.rounds)


if __name__ == "__main__":
    main()
