"""AU on MLPerf-Storage-parameter workloads: how many simulated H100s this machine feeds, beside other loaders.

    python benchmarks/au.py [--workload resnet50|unet3d|cosmoflow] [--rounds 3] [--threads 2] [--processes 2]
                            [--store] [--delay-ms 30] [--trial-sec 60]

AU is compute time over wall time without the first step, averaged over ranks; computing is sleeping, and the data must
have arrived in the rank's memory. Two answers. By rate: the samples/s that one rank gets which computes nothing, over
those that one H100 takes at the AU it must hold. Held: so many ranks at once, each a process with its own loader, all
begun together and meeting after every step, whose mean AU holds. A null loader, whose batch is in memory already,
says what sleeping and meeting alone cost. All candidates take turns, the search too; it begins at the number by rate.

headrace verifies a checksum of every record, the others none. Alone, a rank has two workers (headrace: --processes
and --threads); k ranks divide these, and have one at least. Ceilings are those of `feed_raw.py` at this size of record.
Data lies on the local disk and in the page cache; room for six copies of it is needed. What a rank gets by rate is
printed before the search; a trial that fails or takes longer than --trial-sec does not hold.

With --store the shards lie on a store behind a latency (`s3_server.py`), and everybody reads each of them once: what is
measured ends with the first epoch, since MDS and LitData keep a copy of what they fetched on the local disk, and begins
with its first batch, since they fetch shards far ahead. A DataLoader over files, Grain's ArrayRecord and SPDL read from
no such store by themselves, and are left out.

unet3d's records are drawn from a normal distribution, clipped at 256 MB and at as far below the mean.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import headrace as hr
from au_held import Search, search
from au_ranks import Feed, FeedError, Task, null_feed, run_ranks
from au_store import STORE_PEERS, store_rate
from au_workloads import WORKLOADS, Workload
from feed_raw import memcpy_rate, read_rate
from measure import Spread, finish, rounds, scaled
from peers import versions
from raw_peers import PEERS, WORKERS, Share, installed, records, write_peers
from s3_server import BUCKET, serving

MAX_STEPS = 1 << 30
LEAST_STEPS = 4
EPOCHS_OF_A_STORE = 3
"""So many times the records, as a single epoch must do there."""
MAX_TRIALS = 6
"""Numbers of ranks that are tried of one candidate."""


def headrace_feed(
    place: str, batch_size: int, share: Share, *, threads: int, processes: int, prefetch: int, store: bool
) -> Iterator[Any]:
    """A `headrace.Loader`; ranks divide threads and processes."""
    with hr.Loader(
        hr.Stream(hr.open(f"s3://{BUCKET}/headrace" if store else f"{place}/headrace"), epochs=None),
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


def ceilings(folder: Path, workload: Workload, store: bool) -> dict[str, Callable[[], float]]:
    """What one core of this machine, and the store, can do at this size of record, in samples/s."""
    size, batch_size = workload.record_bytes, workload.batch_size
    found = {
        "one core's memcpy": lambda: memcpy_rate(size, batch_size) * 1e9 / size,
        "one core's reading and hashing": lambda: read_rate(folder / "headrace", size, batch_size) * 1e9 / size,
    }
    if store:
        found["requests to the store alone"] = lambda: store_rate(folder / "headrace") * 1e9 / size
    return found


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


def by_rate(rates: dict[str, Spread], workload: Workload) -> dict[str, Spread]:
    """Samples/s, and how many H100s take as many."""
    numbers = {f"{name}: H100s by rate": scaled(rate, 1 / workload.samples_per_sec) for name, rate in rates.items()}
    return {f"{name}: samples/s": rate for name, rate in rates.items()} | numbers


class Bench:
    """The candidates by rate and held; `feeds` read what lies in `place`."""

    def __init__(self, place: str, workload: Workload, options: argparse.Namespace) -> None:
        self._place, self._workload, self._options = place, workload, options
        self._warm_up = 1 if options.store else workload.warm_up
        least = workload.batch_size * (self._warm_up + LEAST_STEPS if options.store else 1)
        self._most_ranks = options.records // least  # an epoch has what each rank takes
        if self._most_ranks == 0:
            sys.exit(f"one rank takes at least {least:,} records: got --records {options.records:,}")

    def rates(self, feeds: dict[str, Feed], more: dict[str, Callable[[], float]]) -> dict[str, Spread]:
        """Samples/s of one rank that computes nothing; `more` are ceilings."""
        candidates = more | {name: partial(self._rate, name, feed) for name, feed in feeds.items()}
        return rounds(candidates, self._options.rounds)

    def held(self, feeds: dict[str, Feed], rates: dict[str, Spread]) -> dict[str, Spread]:
        """The ranks that hold, and what a null loader makes of as many."""
        works = {name: feed for name, feed in feeds.items() if rates[name].median > 0}
        guesses = {name: rates[name].median / self._workload.samples_per_sec for name in works}
        trials = {name: partial(self._trial, feed, rates[name].median) for name, feed in works.items()}
        found = search(trials, guesses, self._workload.least_au, self._most_ranks, MAX_TRIALS)
        nulls = {
            f"null loader: AU at world size {num_ranks}": Spread(tuple(self._trial(null_feed, math.inf, num_ranks)))
            for num_ranks in sorted({1, *(max(one.held, 1) for one in found.values())})
        }
        return nulls | figures_of(found)

    def _rate(self, name: str, feed: Feed) -> float:
        """0 where the feed fails, or takes too long."""
        seconds = math.inf if self._options.store else self._options.seconds  # there an epoch ends it
        task = Task(feed, self._place, *self._batches(1, MAX_STEPS), limit_sec=seconds)
        try:
            return run_ranks(task, shares(1), self._options.trial_sec)[0]
        except FeedError as err:
            print(f"  {name}: {err}", file=sys.stderr)
            return 0.0

    def _trial(self, feed: Feed, rate: float, num_ranks: int) -> list[float]:
        step_sec = max(self._workload.compute_sec, num_ranks * self._workload.batch_size / rate)
        steps = max(LEAST_STEPS, round(self._options.seconds / step_sec))
        task = Task(feed, self._place, *self._batches(num_ranks, steps), self._workload.compute_sec)
        return run_ranks(task, shares(num_ranks), self._options.trial_sec)

    def _batches(self, num_ranks: int, steps: int) -> tuple[int, int, int]:
        """The size of a batch, those not measured, and those measured: from a store no more than an epoch has."""
        size = self._workload.batch_size
        epoch = self._options.records // (size * num_ranks)
        # The first step is taken too, though it does not count.
        return size, self._warm_up, min(steps, epoch - self._warm_up - 1) if self._options.store else steps


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
    parser.add_argument("--store", action="store_true", help="read from a store instead of the disk")
    parser.add_argument("--delay-ms", type=float, default=30.0, help="the store's latency")
    parser.add_argument("--trial-sec", type=float, default=60.0, help="limit for ranks to start, be fed and end")
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    options.prefetch = options.prefetch or workload.prefetch
    options.records = options.records or workload.num_records * (EPOCHS_OF_A_STORE if options.store else 1)
    able = STORE_PEERS if options.store else PEERS
    names = installed([name for name in options.peers.split(",") if name in able])
    given = {name: getattr(options, name) for name in ("threads", "processes", "prefetch", "store")}
    peers = {name: STORE_PEERS[name] if options.store else partial(peer_feed, name=name) for name in names}
    feeds: dict[str, Feed] = {"headrace": partial(headrace_feed, **given), **peers}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()), BUCKET)
        folder.mkdir()
        write_all(folder, workload, options.records, names)
        if options.store:
            os.environ |= stack.enter_context(serving(folder.parent, options.delay_ms))
        bench = Bench(str(folder), workload, options)
        rates = bench.rates(feeds, ceilings(folder, workload, options.store))
        figures = by_rate(rates, workload)
        print(*(f"  {name:<48} {spread}" for name, spread in figures.items()), sep="\n", flush=True)
        figures |= bench.held(feeds, rates)
    finish(
        f"AU on the MLPerf-Storage-parameter workload {options.workload}: simulated H100s at an AU of "
        f"{workload.least_au}",
        figures,
        versions=versions("webdataset", "mosaicml-streaming", "litdata", "grain", "spdl"),
        **asdict(workload) | vars(options),
    )


if __name__ == "__main__":
    main()
