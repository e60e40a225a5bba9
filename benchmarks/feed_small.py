"""Small samples into the trainer's memory: samples/s in batches of 1,024, beside other loaders.

    python benchmarks/feed_small.py [--of records|rows] [--samples 1000000] [--batch-size 1024]
                                    [--threads 2] [--processes 2] [--rounds 5]

What a sample costs shows where it is small. `records` are 1,000 random bytes each, a list of byte strings a batch;
WebDataset reads headrace's shards, and MDS and those that read loose files get a tenth of the records, as they would
take long to write. `rows` are of a Parquet table, eight columns of float32 and one of int64, a tensor a column; see
`row_peers.py`. The ceiling is what numpy alone does: samples drawn at random out of memory into as many batches as a
loader has, by one process and by as many as the loaders have. headrace verifies a checksum of every record, and of
every column of a row group; the others none. All data lies on the local disk and, after the first pass, in the page
cache. Every measurement is a process of its own; candidates take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headrace as hr
from measure import SECONDS, delivered, finish, given, in_own_process, ratio, rounds, together
from peers import installed, versions
from raw_peers import PEERS, Peer, Share, read_webdataset, records
from row_peers import NUM_FILES, NUM_FLOATS, ROW_PEERS, write_row_peers, write_table

RECORD_BYTES = 1000
NUM_BATCHES = 5
"""Those of the ceiling, as many as a loader has slots."""
FEWER = ("MDS", "DataLoader over loose files", "SPDL")
SMALL_PEERS = PEERS | {"WebDataset": Peer("webdataset", "headrace", lambda folder, data: None, read_webdataset)}
CEILINGS = ("numpy, one process", "numpy, processes")
OURS = {"headrace by processes": "processes", "headrace by threads": "threads"}


def gathered_rate(of: str, samples: int, batch_size: int, seed: int) -> float:
    """Samples/s of one process that draws them from memory, column by column, into batches."""
    rng = np.random.default_rng(seed)
    if of == "records":
        columns = [rng.integers(0, 256, (samples, RECORD_BYTES), np.uint8)]
    else:
        columns = [rng.random(samples, np.float32) for _ in range(NUM_FLOATS)] + [rng.integers(0, 1000, samples)]
    batches = [[np.repeat(column[:1], batch_size, axis=0) for column in columns] for _ in range(NUM_BATCHES)]
    count, began = 0, time.perf_counter()
    for batch in itertools.cycle(batches):
        drawn = rng.integers(samples, size=batch_size)
        for column, target in zip(columns, batch, strict=True):
            np.take(column, drawn, axis=0, out=target, mode="clip")  # other modes make a copy first
        count += batch_size
        if time.perf_counter() - began > SECONDS:
            break
    return count / (time.perf_counter() - began)


def headrace_batches(folder: Path, batch_size: int, **workers: int) -> Iterator[Any]:
    """What a `headrace.Loader` gives."""
    with hr.Loader(hr.Stream(hr.open(folder), epochs=None), batch_size=batch_size, **workers) as loader:
        yield from loader


def peer_batches(name: str, folder: Path, options: argparse.Namespace) -> Iterator[Any]:
    """What a peer gives."""
    peer = (SMALL_PEERS if options.of == "records" else ROW_PEERS)[name]
    return peer.read(folder / peer.stored, options.batch_size, Share(workers=options.processes))


def measure_here(name: str, folder: Path, options: argparse.Namespace) -> float:
    """Samples/s of one candidate, in this process."""
    if name in CEILINGS:
        rate = partial(gathered_rate, options.of, options.samples, options.batch_size)
        return rate(0) if name == CEILINGS[0] else together(rate, options.processes)
    if name in OURS:
        workers = {OURS[name]: getattr(options, OURS[name])}
        batches = headrace_batches(folder / ours(options), options.batch_size, **workers)
    else:
        batches = peer_batches(name, folder, options)
    return delivered(batches, num_samples)


def num_samples(batch: Any) -> int:
    """Those of a batch: a dict or a list of columns, or a list of records."""
    if isinstance(batch, dict):
        return len(next(iter(batch.values())))
    return len(batch[0]) if isinstance(batch[0], torch.Tensor) else len(batch)


def ours(options: argparse.Namespace) -> str:
    """The folder that headrace reads."""
    return "headrace" if options.of == "records" else "table"


def write_all(folder: Path, options: argparse.Namespace) -> list[str]:
    """The same samples for every library that is installed; the names of these."""
    peers: dict[str, Any] = SMALL_PEERS if options.of == "records" else ROW_PEERS
    names = installed({name: peer.module for name, peer in peers.items()})
    if options.of == "rows":
        write_table(folder / "table", options.samples)
        hr.index(folder / "table")
        write_row_peers(folder, names)
        return names
    hr.pack(({"bin": record} for record in records([RECORD_BYTES] * options.samples)), folder / "headrace")
    for name in names:
        count = options.samples // 10 if name in FEWER else options.samples
        if not (folder / peers[name].stored).exists():
            peers[name].write(folder / peers[name].stored, records([RECORD_BYTES] * count))
    return names


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=["records", "rows"], default="records")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2, help="of headrace's loader process")
    parser.add_argument("--processes", type=int, default=2, help="workers of headrace, of peers and of the ceiling")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.samples < NUM_FILES * options.batch_size:
        parser.error(f"each of {NUM_FILES} files must hold a batch: take --samples {NUM_FILES * options.batch_size:,}")
    if options.here:
        print(json.dumps(measure_here(options.here[0], Path(options.here[1]), options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        names = write_all(Path(folder), options)
        candidates = [*CEILINGS, *OURS, *names]
        measures = {name: partial(in_own_process, __file__, options, name, folder) for name in candidates}
        rates = rounds(measures, options.rounds)
    compared = {f"{one} / {other}": ratio(rates[one], rates[other]) for one in OURS for other in [*CEILINGS, *names]}
    finish(
        f"{options.of}, batch {options.batch_size:,}, samples/s",
        {**rates, **compared},
        versions=versions("webdataset", "mosaicml-streaming", "litdata", "grain", "spdl", "datasets", "pyarrow"),
        **given(options),
    )


if __name__ == "__main__":
    main()
