"""JPEGs into batches: decode, random resized crop to 224, flip; images/s in batches of 128 with two threads.

    python benchmarks/feed_images.py [--images 3000] [--rounds 5] [--threads 2]

The ceiling is the same function over the same bytes, already in memory, by as many threads, results written into one
batch array. The images are natural-like, 450x415, about 117 KB each.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import headrace as hr
from headrace.transform import Decode, RandomHorizontalFlip, RandomResizedCrop, apply, sample_rng
from make_images import write_images
from measure import finish, ratio, rounds

BATCH_SIZE, SIDE = 128, 224
WARM_UP_BATCHES = 6
OPS = (Decode(), RandomResizedCrop(SIDE), RandomHorizontalFlip())


def ceiling_rate(images: list[bytes], threads: int) -> float:
    """Images/s of the function alone."""
    batch = np.zeros((BATCH_SIZE, SIDE, SIDE, 3), np.uint8)
    numbers = itertools.count()

    def work() -> None:
        while (number := next(numbers)) < len(images):
            sample = {"__key__": "", "jpg": images[number]}
            made = apply(OPS, sample, lambda number=number: sample_rng(0, 0, number))
            batch[number % BATCH_SIZE] = made["jpg"]

    workers = [threading.Thread(target=work) for _ in range(threads)]
    began = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(images) / (time.perf_counter() - began)


def feed_rate(dataset: hr.Dataset, threads: int, num_images: int) -> float:
    """Images/s that the trainer is given amid a run: as many batches are ready at the end as at the start."""
    stream = hr.Stream(dataset, epochs=None)
    for op in OPS:
        stream = stream.decode() if isinstance(op, Decode) else stream.map(op)
    with hr.Loader(stream, batch_size=BATCH_SIZE, threads=threads, cache_decoded=None) as loader:
        batches = iter(loader)
        for _ in range(WARM_UP_BATCHES):
            next(batches)
        began, count = time.perf_counter(), 0
        while count < num_images:
            count += len(next(batches)["jpg"])
        return count / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, help="images in the dataset")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="threads of the loader process, and of the ceiling")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images", options.images)
        hr.pack(Path(folder) / "images", Path(folder) / "packed")
        dataset = hr.open(Path(folder) / "packed")
        images = [path.read_bytes() for path in sorted(Path(folder, "images").rglob("*.jpg"))]
        rates = rounds(
            {
                "ceiling: the function over bytes in memory, images/s": lambda: ceiling_rate(images, options.threads),
                "headrace, images/s": lambda: feed_rate(dataset, options.threads, options.images),
            },
            options.rounds,
        )
    ceiling, feed = rates.values()
    finish(
        "JPEG decode + random resized crop to 224 + flip, batch 128",
        {**rates, "share of the ceiling": ratio(feed, ceiling)},
        mean_bytes=sum(map(len, images)) / len(images),
        **vars(options),
    )


if __name__ == "__main__":
    main()
