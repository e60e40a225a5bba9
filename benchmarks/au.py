"""AU on MLPerf-Storage-parameter workloads: how many simulated H100s this machine feeds, beside other loaders.

    python benchmarks/au.py [--workload resnet50|unet3d|cosmoflow] [--rounds 3] [--threads 2] [--processes 2]

AU is compute time over wall time without the first step, averaged over ranks; computing is sleeping, and the data must
have arrived in the rank's memory. Two answers. By rate: the samples/s that one rank gets which computes nothing, over
those that one H100 takes at the AU it must hold. Held: so many ranks at once, each a process with its own loader, all
begun together and meeting after every step, whose mean AU holds. A null loader, whose batch is in memory already,
says what sleeping and meeting alone cost. All candidates take turns, the search too; it begins at the number by rate.

headrace verifies a checksum of every record, the others none. Alone, a rank has two workers (headrace: --processes
and --threads); k ranks divide these, and have one at least. Ceilings are those of `feed_raw.py` at this size of record.
Data lies on the local disk and in the page cache; room for six copies of it is needed.

unet3d's records are drawn from a normal distribution, clipped at 256 MB and at as far below the mean.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import headrace as hr
from au_held import Search, search
from au_ranks import Feed, Task, null_feed, run_ranks
from feed_raw import memcpy_rate, read_rate
from measure import Spread, finish, ratio, rounds
from peers import versions
from raw_peers import PEERS, WORKERS, Share, installed, records, write_peers

MAX_RECORD_BYTES = 256_000_000
MAX_STEPS = 1 << 30
LEAST_STEPS = 4
MAX_TRIALS = 6
"""Numbers of ranks that are tried of one candidate."""


@dataclass(frozen=True)
class Workload:
    """What MLPerf Storage says of one, on an H100, and how much data is made here."""

    batch_size: int
    compute_sec: float
    record_bytes: int
    std_bytes: int
    least_au: float
    num_records: int
    warm_up: int
    prefetch: int

    @property
    def samples_per_sec(self) -> float:
        """What one H100 takes at the AU that it must hold."""
        return self.batch_size / self.compute_sec * self.least_au

    def sizes(self, num_records: int) -> list[int]:
        """Bytes of each record."""
        drawn = np.random.default_rng(0).normal(self.record_bytes, self.std_bytes, num_records)
        furthest = MAX_RECORD_BYTES - self.record_bytes
        return [int(size) for size in drawn.clip(self.record_bytes - furthest, self.record_bytes + furthest)]


WORKLOADS = {
    "resnet50": Workload(400, 0.224, 114_660, 0, 0.90, 8_000, 8, 2),
    "unet3d": Workload(7, 0.323, 146_600_628, 68_341_808, 0.90, 14, 3, 1),
    "cosmoflow": Workload(1, 0.0035, 2_828_486, 0, 0.70, 300, 32, 2),
}


def headrace_feed(
    place: str, batch_size: int, share: Share, *, threads: int, processes: int, prefetch: int
) -> Iterator[Any]:
    """A `headrace.Loader`; ranks divide threads and processes."""
    with hr.Loader(
        hr.Stream(hr.open(f"{place}/headrace"), epochs=None),
        batch_size=batch_size,
        rank=share.rank,
        world_size=share.world_size,
        threads=max(1, threads // share.world_size),
        processes=max(1, processes // share.world_size),
        prefetch=prefetch,
    ) as loader:
        for batch in loader:
            yield batch["bin"]


def peer_feed(place: str, batch_size: int, share: Share, *, name: str) -> Iterator[Any]:
    """A peer over local files."""
    return PEERS[name].read(Path(place) / PEERS[name].stored, batch_size, share)


def shares(num_ranks: int) -> list[Share]:
    """Those of so many ranks of one machine."""
    return [Share(rank, num_ranks, max(1, WORKERS // num_ranks)) for rank in range(num_ranks)]


def ceilings(folder: Path, workload: Workload) -> dict[str, Callable[[], float]]:
    """What one core of this machine can do at this size of record, in samples/s."""
    size, batch_size = workload.record_bytes, workload.batch_size
    return {
        "one core's memcpy": lambda: memcpy_rate(size, batch_size) * 1e9 / size,
        "one core's reading and hashing": lambda: read_rate(folder / "headrace", size, batch_size) * 1e9 / size,
    }


def write_all(folder: Path, workload: Workload, num_records: int, names: list[str]) -> None:
    """The same records for headrace and every peer."""
    sizes = workload.sizes(num_records)
    needed, free = sum(sizes) * (1 + len({PEERS[name].stored for name in names})), shutil.disk_usage(folder).free
    if needed > free:
        sys.exit(
            f"the data needs {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free: take fewer --records, "
            "or set TMPDIR"
        )
    hr.pack(({"bin": record} for record in records(sizes)), folder / "headrace")
    write_peers(folder, names, sizes)


def figures_of(searches: dict[str, Search]) -> dict[str, Spread]:
    """The most ranks that held, and each trial: the mean AU, and each rank's as its spread."""
    figures = {f"{name}: H100s held": Spread((float(found.held),)) for name, found in searches.items()}
    for name, found in searches.items():
        for num_ranks, utilizations in sorted(found.trials.items()):
            figures[f"{name}: AU at world size {num_ranks}"] = Spread(tuple(utilizations or [0.0]))
    return figures


def measure(
    feeds: dict[str, Feed], place: str, workload: Workload, options: argparse.Namespace, more: dict[str, Any]
) -> dict[str, Spread]:
    """All candidates, by rate and held; `more` are ceilings."""
    batch_size, warm_up = workload.batch_size, workload.warm_up

    def by_rate(feed: Feed) -> float:
        task = Task(feed, place, batch_size, warm_up, MAX_STEPS, limit_sec=options.seconds)
        return run_ranks(task, shares(1))[0]

    rates = rounds(more | {name: partial(by_rate, feed) for name, feed in feeds.items()}, options.rounds)
    one_h100 = Spread((workload.samples_per_sec,) * options.rounds)
    numbers = {name: ratio(rate, one_h100) for name, rate in rates.items()}

    def trial(feed: Feed, rate: float, num_ranks: int) -> list[float]:
        step_sec = max(workload.compute_sec, num_ranks * batch_size / rate)
        steps = max(LEAST_STEPS, round(options.seconds / step_sec))
        return run_ranks(Task(feed, place, batch_size, warm_up, steps, workload.compute_sec), shares(num_ranks))

    guesses = {name: numbers[name].median for name in feeds}
    trials = {name: partial(trial, feed, rates[name].median) for name, feed in feeds.items()}
    most = options.records // workload.batch_size  # an epoch has a batch for each rank
    found = search(trials, guesses, workload.least_au, most, MAX_TRIALS)
    nulls = {
        f"null loader: AU at world size {num_ranks}": Spread(tuple(trial(null_feed, math.inf, num_ranks)))
        for num_ranks in sorted({1, *(max(one.held, 1) for one in found.values())})
    }
    return {
        **{f"{name}: samples/s": rate for name, rate in rates.items()},
        **{f"{name}: H100s by rate": number for name, number in numbers.items()},
        **nulls,
        **figures_of(found),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="resnet50")
    parser.add_argument("--records", type=int, help="records in the dataset")
    parser.add_argument("--rounds", type=int, default=3, help="of the rates; the search is done once")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--peers", default=",".join(PEERS), help="those to measure, with commas")
    parser.add_argument("--threads", type=int, default=2, help="of headrace's loader process, of all ranks together")
    parser.add_argument("--processes", type=int, default=2, help="its worker processes, of all ranks together")
    parser.add_argument("--prefetch", type=int, help="batches that headrace has ready")
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    options.prefetch, options.records = options.prefetch or workload.prefetch, options.records or workload.num_records
    names = installed([name for name in options.peers.split(",") if name])
    ours = partial(headrace_feed, threads=options.threads, processes=options.processes, prefetch=options.prefetch)
    feeds: dict[str, Feed] = {"headrace": ours, **{name: partial(peer_feed, name=name) for name in names}}
    with tempfile.TemporaryDirectory() as name:
        write_all(Path(name), workload, options.records, names)
        figures = measure(feeds, name, workload, options, ceilings(Path(name), workload))
    finish(
        f"AU on the MLPerf-Storage-parameter workload {options.workload}: simulated H100s at an AU of "
        f"{workload.least_au}",
        figures,
        versions=versions("webdataset", "mosaicml-streaming", "litdata", "grain", "spdl"),
        **asdict(workload) | vars(options),
    )


if __name__ == "__main__":
    main()
