"""Images from the second epoch on, out of a cache of decoded samples: random resized crop to 224 + flip, batch 128.

    python benchmarks/decoded_cache.py [--images 3000] [--rounds 3] [--workers 2] [--peers WebDataset MDS]

The images are natural-like, 450x415, about 117 KB each; headrace has them packed with `--resize-short 256`, and as they
are, by threads of its loader process and by processes. The ceiling is what is left to be done, crop and flip over
decoded images in memory, by as many threads, results written into one batch array. Peers decode in every epoch: each
with Pillow, which their guides use, and with the function that headrace has (simplejpeg and OpenCV), over the images as
they are and over the smaller ones. Every measurement is a process of its own; candidates take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import headrace as hr
from headrace.transform import Decode, apply, sample_rng
from image_batches import MAKERS, REST, SIDE
from make_images import write_images
from measure import SECONDS, Spread, delivered, finish, in_own_process, ratio, rounds
from peers import versions
from raw_peers import PEERS, Share, installed

BATCH_SIZE, SHORT = 128, 256
SETS = {"450x415": None, "short side 256": SHORT}
CACHES = ("ram", "folder", "none")
BY = ("threads", "processes")
WAYS = [f"{cache} by {by}" for cache, by in itertools.product(CACHES, BY)]


def ceiling_rate(folder: Path, threads: int) -> float:
    """Images/s of crop and flip alone."""
    dataset = hr.open(folder)
    few = [apply((Decode(),), dataset[i], lambda: np.random.default_rng()) for i in range(min(512, len(dataset)))]
    batch = np.zeros((BATCH_SIZE, SIDE, SIDE, 3), np.uint8)
    numbers, deadline = itertools.count(), time.perf_counter() + SECONDS

    def work() -> None:
        while time.perf_counter() < deadline:
            number = next(numbers)
            sample = few[number % len(few)]
            assert sample is not None  # there is no filter
            made = apply(REST, sample, partial(sample_rng, 0, 0, number))
            assert made is not None
            batch[number % BATCH_SIZE] = made["jpg"]

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return next(numbers) / SECONDS


def headrace_batches(folder: Path, how: str, workers: int) -> Iterator[torch.Tensor]:
    """Batches from the second epoch on; `how` is one of CACHES and one of BY."""
    cache, by = how.split(" by ")
    dataset = hr.open(folder / "packed")
    where = {"ram": "ram", "folder": folder / "decoded", "none": None}[cache]
    stream = hr.Stream(dataset, epochs=None).decode().map(REST[0]).map(REST[1])
    with hr.Loader(stream, batch_size=BATCH_SIZE, cache_decoded=where, **{by: workers}) as loader:
        for number, batch in enumerate(loader):
            if number >= loader.steps_per_epoch:
                yield batch["jpg"]


def measure_here(candidate: Sequence[str], folder: Path, workers: int) -> float:
    """Images/s of one candidate, in this process."""
    kind, images, how = candidate
    if kind == "ceiling":
        return ceiling_rate(folder / images / "packed", workers)
    if kind == "headrace":
        return delivered(headrace_batches(folder / images, how, workers), len)
    return delivered(PEERS[kind].read(folder / images / kind, BATCH_SIZE, Share(), MAKERS[how]), len)


def write_all(folder: Path, num_images: int, peers: Sequence[str]) -> None:
    """The images as they are and smaller, for headrace and for each peer."""
    write_images(folder / "images", num_images)
    for name, short in SETS.items():
        hr.pack(folder / "images", folder / name / "packed", resize_short=short)
        dataset = hr.open(folder / name / "packed")
        for peer in peers:
            PEERS[peer].write(folder / name / peer, (bytes(dataset[i]["jpg"]) for i in range(len(dataset))))


def compared(rates: dict[tuple[str, str, str], Spread]) -> dict[str, Spread]:
    """Ratios of what headrace gives from its cache to the ceiling, to itself without, and to the best peers."""
    figures: dict[str, Spread] = {}
    small = "short side 256"
    for cache, by in itertools.product(("ram", "folder"), BY):
        kept = rates["headrace", small, f"{cache} by {by}"]
        figures[f"{cache} by {by}: share of the ceiling"] = ratio(kept, rates["ceiling", small, "crop and flip"])
        without = rates["headrace", small, f"none by {by}"]
        figures[f"{cache} by {by}: over headrace without it, {small}"] = ratio(kept, without)
        for images, how in itertools.product(SETS, MAKERS):
            peers = {key: rate for key, rate in rates.items() if key[0] in PEERS and key[1:] == (images, how)}
            if peers:
                best = max(peers, key=lambda key: peers[key].median)
                figures[f"{cache} by {by}: over {best[0]}, {images}, {how}"] = ratio(kept, peers[best])
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, help="images in the dataset")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="threads or processes, and threads of the ceiling")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--here", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        place, *candidate = options.here
        print(json.dumps(measure_here(candidate, Path(place), options.workers)))
        return
    peers = installed(options.peers)
    candidates = [("ceiling", images, "crop and flip") for images in SETS]
    candidates += [("headrace", *what) for what in itertools.product(SETS, WAYS)]
    candidates += list(itertools.product(peers, SETS, MAKERS))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_all(folder, options.images, peers)
        measures = {", ".join(one): partial(in_own_process, __file__, options, name, *one) for one in candidates}
        found = rounds(measures, options.rounds)
    rates = dict(zip(candidates, found.values(), strict=True))
    finish(
        "images/s from the second epoch on: random resized crop to 224 + flip, batch 128",
        {**found, **compared(rates)},
        peers={name: name in peers for name in PEERS},
        versions=versions("webdataset", "mosaicml-streaming", "litdata", "grain", "spdl", "pillow", "simplejpeg"),
        images=options.images,
        workers=options.workers,
    )


if __name__ == "__main__":
    main()
