"""A manifest of a million shards: its size, and how long and in how much memory a fresh process opens it.

    python benchmarks/manifest_scale.py [--shards 1000000] [--rounds 5]

The shards are not there: nothing but the manifest is read to open a dataset. The ceiling is reading the same file into
memory. `a sample` is `ds[i]` at random places of as many shards, of which a few are real: an index is read for each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import headrace as hr
from headrace.formats.columns import Digests, Strings
from headrace.formats.manifest import MANIFEST_NAME, Manifest
from headrace.formats.shards import Shards
from measure import Spread, finish, ratio, rounds

NUM_REAL = 64
"""Shards that are there, at even distances among those that are not."""


def write_dataset(folder: Path, num_shards: int) -> None:
    """A manifest whose shards have 64 MiB and 570 samples each, and a few shards, of 40 samples of 1 kB."""
    rng = np.random.default_rng(0)
    data = rng.bytes(1000)
    packed = hr.pack(({"bin": data} for _ in range(40 * NUM_REAL)), folder, shard_size=40 * 1536 + 1024, shuffle=False)
    real = np.linspace(0, num_shards - 1, NUM_REAL).astype(int)
    rows = packed.shards
    samples, sizes = np.full(num_shards, 570), rng.integers(60_000_000, 64 << 20, num_shards)
    samples[real], sizes[real] = rows.samples[:NUM_REAL], rows.bytes[:NUM_REAL]
    digests = []
    for column in (rows.xxh3_128, rows.index_xxh3_128):
        made = np.frombuffer(rng.bytes(16 * num_shards), np.uint8).reshape(-1, 16).copy()
        made[real] = np.frombuffer(column.data, np.uint8).reshape(-1, 16)[:NUM_REAL]
        digests.append(Digests(made.tobytes()))
    names = [f"shard-{k:06d}.tar" for k in range(num_shards)]
    for k in reversed(range(NUM_REAL)):
        for end in ("", ".idx"):
            (folder / (rows.file[k] + end)).rename(folder / (names[real[k]] + end))
    starts, none = np.arange(num_shards + 1), np.zeros(num_shards, np.int64)
    shards = Shards(Strings.of(names), samples, sizes, *digests, samples, starts, none, none)
    (folder / "headrace.keys").unlink(missing_ok=True)
    Manifest("tar", packed.fields, shards).write(folder)


def open_dataset(folder: Path, num_shards: int) -> dict[str, float]:
    """What one fresh process measures."""
    before = (hr.open, peak_memory())[1]  # with all that opening imports
    began = time.perf_counter()
    dataset = hr.open(folder)
    opened = time.perf_counter()
    peak = peak_memory()
    num_samples = len(dataset)
    measured = time.perf_counter()
    real = np.linspace(0, num_shards - 1, NUM_REAL).astype(int)
    first = dataset.pieces.sample_starts[real]
    for i in np.random.default_rng(0).permutation(first).tolist():
        dataset[i]
    read = time.perf_counter()
    return {
        "open, s": opened - began,
        "peak memory of the process, MiB": peak,
        "of it before opening, MiB": before,
        "len, ms": (measured - opened) * 1e3,
        "a sample, its shard's index read for it, ms": (read - measured) / NUM_REAL * 1e3,
        "samples": num_samples,
    }


def peak_memory() -> float:
    """MiB that this process has held at most; unlike what getrusage says, without its parent's before the start."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def read_file(folder: Path) -> float:
    """Seconds to read the manifest's bytes into memory of their own."""
    began = time.perf_counter()
    (folder / MANIFEST_NAME).read_bytes()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(open_dataset(options.open, options.shards)))
        return
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "dataset"
        write_dataset(folder, options.shards)
        num_bytes = (folder / MANIFEST_NAME).stat().st_size
        command = [sys.executable, __file__, "--open", str(folder), "--shards", str(options.shards)]

        def fresh() -> float:
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
            return runs[-1]["open, s"]

        rates = rounds(
            {"ceiling: reading the file, s": lambda: read_file(folder), "open, s": fresh},
            options.rounds,
        )
    ceiling, opened = rates.values()
    figures = dict(rates) | {name: Spread(tuple(run[name] for run in runs[1:])) for name in runs[0]}
    figures["open over ceiling"] = ratio(opened, ceiling)
    figures |= {"size, MB (10^6 bytes)": Spread((num_bytes / 1e6,)), "size, MiB": Spread((num_bytes / 2**20,))}
    claim = f"a dataset of {options.shards:,} shards opened in a fresh process"
    finish(claim, figures, shards=options.shards, rounds=options.rounds, bytes=num_bytes)


if __name__ == "__main__":
    main()
