"""Peak memory of packing a million tiny samples, which must not grow with their number: under 500 MB for every source.

    python benchmarks/pack_memory.py [--samples 1000000] [--sources iterable jsonl csv] [--format tar]

Each source is packed by a process of its own; its peak is the kernel's count of memory in use (maximum resident set),
with the interpreter, libraries and everything else. A process that packs a single sample is the floor.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import headrace as hr
from measure import Spread, finish

SOURCES = ("iterable", "jsonl", "csv", "sql")
LIMIT_MB = 500


def samples(num_samples: int) -> Iterator[dict[str, Any]]:
    """Tiny samples, made as they are asked for."""
    for i in range(num_samples):
        yield {"__key__": f"k{i:09d}", "txt": f"sample number {i}", "cls": i % 10}


def write_jsonl(path: Path, num_samples: int) -> None:
    """The samples as JSON lines."""
    with path.open("w") as file:
        for sample in samples(num_samples):
            file.write(json.dumps(sample) + "\n")


def write_csv(path: Path, num_samples: int) -> None:
    """The samples as a table."""
    with path.open("w") as file:
        file.write("__key__,txt,cls\n")
        for sample in samples(num_samples):
            file.write(",".join(map(str, sample.values())) + "\n")


def pack_here(source: str, folder: Path, num_samples: int, format_name: str) -> None:
    """Pack in this process, and print the samples that were packed, the seconds and the peak in MB."""
    began = time.perf_counter()
    packed = 0
    if source == "sql":
        query = "select * from source where cls < 5"
        packed = hr.pack(folder / "source.csv", folder / "out", format=format_name, query=query).samples
    else:
        given = {"iterable": samples(num_samples), "floor": samples(1)}.get(source, folder / f"source.{source}")
        packed = hr.pack(given, folder / "out", format=format_name).samples
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps([packed, time.perf_counter() - began, peak_mb]))


def measured(source: str, num_samples: int, format_name: str) -> tuple[int, float, float]:
    """Samples packed, seconds and peak MB of one source."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if source == "jsonl":
            write_jsonl(folder / "source.jsonl", num_samples)
        elif source in ("csv", "sql"):
            write_csv(folder / "source.csv", num_samples)
        command = [sys.executable, __file__, "--here", source, str(folder), str(num_samples), format_name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        packed, seconds, peak_mb = json.loads(done.stdout)
        return packed, seconds, peak_mb


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--here"]:
        pack_here(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=["iterable", "jsonl", "csv"])
    parser.add_argument("--format", default="tar")
    options = parser.parse_args()
    figures = {}
    for source in ("floor", *options.sources):
        packed, seconds, peak_mb = measured(source, options.samples, options.format)
        figures[f"{source}: peak memory, MB"] = Spread((peak_mb,))
        if packed > 1:
            figures[f"{source}: samples/s"] = Spread((packed / seconds,))
    finish(f"packing {options.samples:,} tiny samples; {LIMIT_MB} MB is the limit", figures, **vars(options))


if __name__ == "__main__":
    main()
