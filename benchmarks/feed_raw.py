"""Raw records into the trainer's memory: GB/s of 114,660-byte records in batches of 400, beside other loaders.

    python benchmarks/feed_raw.py [--records 4000] [--record-bytes 114660] [--batch-size 400] [--rounds 5]
                                  [--processes 2]

headrace verifies a checksum of every record, the others none. Two ceilings: one core's memcpy of as many bytes, batch
by batch, into memory that is touched already; and what no loader of one core can do without, reading records at random
out of the page cache and going over them once for the checksum. All data lies on the local disk and, after the first
pass, in the page cache. Every measurement is a process of its own; candidates take turns. Records of 1,000 bytes show
what a sample costs: --record-bytes 1000 --records 1000000 --batch-size 1024.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

import headrace as hr
from measure import SECONDS, delivered, finish, given, in_own_process, ratio, rounds
from peers import versions
from raw_peers import PEERS, Share, installed, records, write_peers


def memcpy_rate(record_bytes: int, batch_size: int) -> float:
    """GB/s of one core copying batches of records."""
    num_sources = max(1, min(4, (1 << 30) // (batch_size * record_bytes)))
    source = np.random.default_rng(0).integers(0, 256, num_sources * batch_size * record_bytes, np.uint8)
    target = np.ones(batch_size * record_bytes, np.uint8)  # zeros would be touched while it is measured
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        at = count % num_sources * len(target)
        for place in range(0, len(target), record_bytes):
            target[place : place + record_bytes] = source[at + place : at + place + record_bytes]
        count += 1
    return count * len(target) / (time.perf_counter() - began) / 1e9


def read_rate(folder: Path, record_bytes: int, batch_size: int) -> float:
    """GB/s of one core reading records out of the page cache into as many batches as a loader has, and hashing them."""
    files = [path.open("rb", buffering=0) for path in sorted(folder.glob("*.tar"))]
    sizes = [Path(file.name).stat().st_size for file in files]
    target = memoryview(np.ones(5 * batch_size * record_bytes, np.uint8))
    rng, at, num_bytes, began = np.random.default_rng(0), 0, 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        k = int(rng.integers(len(files)))
        view = target[at : at + record_bytes]
        files[k].seek(int(rng.integers(max(1, sizes[k] - record_bytes))))
        files[k].readinto(view)
        xxhash.xxh3_64_intdigest(view)
        at, num_bytes = (at + record_bytes) % len(target), num_bytes + record_bytes
    return num_bytes / (time.perf_counter() - began) / 1e9


def gigabytes(batch: list[Any]) -> float:
    """GB of a batch of byte strings."""
    return sum(map(len, batch)) / 1e9


def headrace_batches(folder: Path, batch_size: int, **workers: int) -> Iterator[list[Any]]:
    """What a `headrace.Loader` gives."""
    with hr.Loader(hr.Stream(hr.open(folder), epochs=None), batch_size=batch_size, **workers) as loader:
        for batch in loader:
            yield batch["bin"]


def measure_here(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Measure one candidate in this process, and print its rate."""
    if name == "memcpy":
        rate = memcpy_rate(options.record_bytes, options.batch_size)
    elif name == "read":
        rate = read_rate(folder / "headrace", options.record_bytes, options.batch_size)
    elif name == "headrace":
        batches = headrace_batches(folder / "headrace", options.batch_size, processes=options.processes)
        rate = delivered(batches, gigabytes)
    elif name == "headrace by threads":
        batches = headrace_batches(folder / "headrace", options.batch_size, threads=options.processes)
        rate = delivered(batches, gigabytes)
    else:
        peer = PEERS[name]
        rate = delivered(peer.read(folder / peer.stored, options.batch_size, Share()), gigabytes)
    print(json.dumps(rate))


def write_all(folder: Path, options: argparse.Namespace) -> list[str]:
    """The same records for every library that is installed; returns the names of these."""
    sizes = [options.record_bytes] * options.records
    hr.pack(({"bin": record} for record in records(sizes)), folder / "headrace")
    names = installed()
    write_peers(folder, names, sizes)
    return names


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4000, help="records in the dataset")
    parser.add_argument("--record-bytes", type=int, default=114_660)
    parser.add_argument("--batch-size", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="headrace's worker processes, or threads")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure_here(options.here[0], Path(options.here[1]), options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        candidates = ["memcpy", "read", "headrace", "headrace by threads", *write_all(folder, options)]
        measures = {one: partial(in_own_process, __file__, options, one, name) for one in candidates}
        rates = rounds(measures, options.rounds)
    best = max(candidates[4:], key=lambda name: rates[name].median)
    ours = rates["headrace"]
    finish(
        f"raw records of {options.record_bytes:,} bytes in the trainer's memory, batch {options.batch_size}, GB/s",
        {
            **rates,
            "headrace / one core's memcpy": ratio(ours, rates["memcpy"]),
            "headrace / one core's reading and hashing": ratio(ours, rates["read"]),
            **{f"headrace / {candidate}": ratio(ours, rates[candidate]) for candidate in candidates[4:]},
        },
        best_peer=best,
        versions=versions("webdataset", "mosaicml-streaming", "litdata", "grain", "spdl"),
        **given(options),
    )


if __name__ == "__main__":
    main()
