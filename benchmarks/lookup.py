"""Samples by their keys: milliseconds a look-up of random keys out of a million, in a fresh process, after opening.

    python benchmarks/lookup.py [--samples 1000000] [--keys 20000] [--rounds 5]

The ceiling is what no look-up can do without: one read of a page and one of the sample, each from a file opened for it.
Each round is a process of its own; files are in the page cache, or (`from disk`) dropped from it before the round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import headrace as hr
from measure import Spread, finish, ratio, rounds

SAMPLE_BYTES = 100
PAGE_BYTES = 4096


def write_dataset(folder: Path, num_samples: int) -> None:
    """Tiny samples in tar shards, indexed."""
    data = np.random.default_rng(0).bytes(SAMPLE_BYTES)
    hr.pack(({"__key__": f"user/{i:09d}", "bin": data} for i in range(num_samples)), folder, shuffle=False)
    if not (folder / "headrace.keys").exists():
        for path in [folder / "headrace.json", *folder.glob("*.idx")]:
            path.unlink()
        hr.index(folder)


def look_up(folder: Path, num_samples: int, num_keys: int) -> dict[str, float]:
    """What one fresh process measures: opening in s, look-ups in ms."""
    keys = [f"user/{i:09d}" for i in np.random.default_rng(os.getpid()).integers(0, num_samples, num_keys)]
    began = time.perf_counter()
    dataset = hr.open(folder)
    opened = time.perf_counter()
    times = np.empty(num_keys)
    for number, key in enumerate(keys):
        start = time.perf_counter()
        sample = dataset.lookup(key)
        times[number] = time.perf_counter() - start
        if sample["__key__"] != key:
            raise AssertionError(f"{key} gave {sample['__key__']}")
    times *= 1e3
    return {
        "open": opened - began,
        "first": float(times[0]),
        "mean": float(times.mean()),
        "median": float(np.median(times)),
        "p99": float(np.quantile(times, 0.99)),
        "largest": float(times.max()),
    }


def read_twice(folder: Path, num_keys: int) -> float:
    """Milliseconds of a page's and a sample's read, at random places, each from a file opened for it."""
    files = [folder / "headrace.keys", *sorted(folder.glob("*.tar"))]
    sizes = [path.stat().st_size for path in files]
    rng = np.random.default_rng(os.getpid())
    shards = rng.integers(1, len(files), num_keys).tolist()
    at = rng.random((2, num_keys)).tolist()
    began = time.perf_counter()
    for number, shard in enumerate(shards):
        for file, place, length in ((0, at[0][number], PAGE_BYTES), (shard, at[1][number], 1024)):
            fd = os.open(files[file], os.O_RDONLY)
            os.pread(fd, length, int(place * (sizes[file] - length)))
            os.close(fd)
    return (time.perf_counter() - began) / num_keys * 1e3


def drop_from_cache(folder: Path) -> None:
    """Have the next reads come from the disk."""
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def fresh(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """`look_up` in a process of its own."""
    command = [sys.executable, __file__, "--look-up", str(folder)]
    command += ["--samples", str(options.samples), "--keys", str(options.keys)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=20_000, help="look-ups a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--look-up", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look_up:
        print(json.dumps(look_up(options.look_up, options.samples, options.keys)))
        return
    details: dict[str, list[dict[str, float]]] = {"page cache": [], "disk": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "packed"
        write_dataset(folder, options.samples)
        keys_bytes = (folder / "headrace.keys").stat().st_size

        def measured(where: str) -> float:
            if where == "disk":
                drop_from_cache(folder)
            details[where].append(fresh(folder, options))
            return details[where][-1]["mean"]

        rates = rounds(
            {
                "ceiling: two reads in the page cache, ms": lambda: read_twice(folder, options.keys),
                "look-up, files in the page cache, mean ms": lambda: measured("page cache"),
                "look-up, files from disk, mean ms": lambda: measured("disk"),
            },
            options.rounds,
        )
    figures = dict(rates)
    ceiling, cached, _ = rates.values()
    for where, runs in details.items():
        for fact, unit in (("open", "s"), ("first", "ms"), ("median", "ms"), ("p99", "ms"), ("largest", "ms")):
            figures[f"{where}: {fact}, {unit}"] = Spread(tuple(run[fact] for run in runs[1:]))
    figures["look-up over ceiling"] = ratio(cached, ceiling)
    inputs = {"samples": options.samples, "keys": options.keys, "rounds": options.rounds, "keys_bytes": keys_bytes}
    finish("a random key out of a million found and its sample read, in a fresh process", figures, **inputs)


if __name__ == "__main__":
    main()
