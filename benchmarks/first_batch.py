"""Seconds until the first batch of a local dataset of a million samples, and what importing headrace takes.

    python benchmarks/first_batch.py [--samples 1000000] [--rounds 5]

Each round is a fresh process: torch is imported, then headrace (timed by itself), the dataset is opened, and the clock
runs from `iter(loader)` to the first batch, the start of the loader process included. Samples are 1 kB and a class;
beside them the same with a function that is mapped, and with two worker processes. Files are in the page cache. The
ceiling is the start of an interpreter that imports what any loader needs, numpy. Aim: 1.0 s, and 0.5 s for the import.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from measure import Spread, finish

RECORD_BYTES = 1000
CASES: dict[str, dict[str, Any]] = {"stored": {}, "mapped": {"mapped": True}, "2 processes": {"processes": 2}}


def samples(count: int) -> Iterator[dict[str, Any]]:
    """Records and classes."""
    data = np.random.default_rng(0).bytes(1 << 20)
    for number in range(count):
        at = number * 37 % (len(data) - RECORD_BYTES)
        yield {"__key__": f"{number:08d}", "bin": data[at : at + RECORD_BYTES], "cls": number % 10}


def unchanged(sample: dict[str, Any]) -> dict[str, Any]:
    """What a user's function may be at least."""
    return sample


def times_here(folder: Path, case: str) -> dict[str, float]:
    """Of this fresh process."""
    import torch  # noqa: F401 - so that its time is not counted

    began = time.perf_counter()
    import headrace as hr

    _ = hr.Loader, hr.Stream, hr.open, hr.pack
    imported = time.perf_counter()
    stream = hr.Stream(hr.open(folder))
    options = dict(CASES[case])
    stream = stream.map(unchanged) if options.pop("mapped", False) else stream
    with hr.Loader(stream, batch_size=256, **options) as loader:
        opened = time.perf_counter()
        next(iter(loader))
        return {"import": imported - began, "first batch": time.perf_counter() - opened}


def interpreter_sec() -> float:
    """The start of an interpreter that imports numpy."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(times_here(Path(options.here[0]), options.here[1])))
        return
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "packed"
        import headrace as hr

        hr.pack(samples(options.samples), folder, shuffle=False)
        for number in range(options.rounds + 1):
            seen = {"ceiling: an interpreter that imports numpy, s": interpreter_sec()}
            for case in CASES:
                command = [sys.executable, __file__, "--here", str(folder), case]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                times = json.loads(done.stdout.splitlines()[-1])
                seen[f"first batch, {case}, s"] = times["first batch"]
                seen["import headrace after torch, s"] = times["import"]
            if number:  # the first round reads the files
                for name, value in seen.items():
                    found.setdefault(name, []).append(value)
    figures = {name: Spread(tuple(values)) for name, values in found.items()}
    finish(f"the first batch of {options.samples:,} samples", figures, samples=options.samples, rounds=options.rounds)


if __name__ == "__main__":
    main()
