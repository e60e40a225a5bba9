"""Images into batches: decode, random resized crop to 224, flip; images/s in batches of 128, beside other loaders.

    python benchmarks/feed_images.py [--images 3000] [--format jpeg|png|webp] [--size 450] [--threads 2]
                                     [--processes 2] [--seconds 3] [--rounds 5] [--peers WebDataset MDS]

The ceiling is headrace's function over bytes that are in memory already, results written into one batch array, by as
many threads or by as many processes. Each peer runs twice: with that same function (simplejpeg or OpenCV) called by
its workers, so that only the loader differs, and with Pillow, as their guides have it. Images are natural-like,
450x415 and 117 KB as JPEGs; other formats are those encoded anew, other sizes those enlarged or shrunk before. Every
measurement is a process of its own; candidates take turns. Aims: 0.97 of the ceiling, 1.15 times the best peer with
the same function, 1.7 times each peer with Pillow.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

import headrace as hr
from headrace.transform import apply, sample_rng
from image_batches import FIELDS, OPS, REST, SIDE, with_cv2, with_pillow
from make_images import HEIGHT, QUALITY, WIDTH, make_images
from measure import SECONDS, Spread, delivered, finish, given, in_own_process, ratio, rounds, together
from peers import versions
from raw_peers import PEERS, Share, installed

BATCH_SIZE = 128
CEILINGS = {"ceiling by processes": "processes", "ceiling by threads": "threads"}
OURS = {"headrace by processes": "processes", "headrace by threads": "threads"}
EQUAL, PILLOW = "the same function", "Pillow"


def ceiling_rate(folder: Path, options: argparse.Namespace, threads: int, number: int = 0, processes: int = 1) -> float:
    """Images/s of the function alone, by one process of several with so many threads."""
    images = [path.read_bytes() for path in sorted(folder.iterdir())[number::processes]]
    batch = np.zeros((BATCH_SIZE, SIDE, SIDE, 3), np.uint8)
    numbers, deadline = itertools.count(), time.perf_counter() + options.seconds

    def work() -> None:
        while time.perf_counter() < deadline:
            number = next(numbers)
            sample = {"__key__": "", FIELDS[options.format]: images[number % len(images)]}
            made = apply(OPS, sample, partial(sample_rng, 0, 0, number))
            assert made is not None  # there is no filter
            batch[number % BATCH_SIZE] = made[FIELDS[options.format]]

    cv2.setNumThreads(1)
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return next(numbers) / options.seconds


def one_of_many(folder: Path, options: argparse.Namespace, number: int) -> float:
    """Images/s of one process of several, with its share of the images."""
    return ceiling_rate(folder, options, 1, number, options.processes)


def headrace_batches(folder: Path, field: str, **workers: int) -> Iterator[Any]:
    """What a `headrace.Loader` gives; nothing is kept for the next epoch."""
    stream = hr.Stream(hr.open(folder), epochs=None).decode().map(REST[0]).map(REST[1])
    with hr.Loader(stream, batch_size=BATCH_SIZE, cache_decoded=None, **workers) as loader:
        for batch in loader:
            yield batch[field]


def measure_here(name: str, folder: Path, options: argparse.Namespace) -> float:
    """Images/s of one candidate, in this process."""
    if name in CEILINGS:
        if CEILINGS[name] == "threads":
            return ceiling_rate(folder / "loose", options, options.threads)
        return together(partial(one_of_many, folder / "loose", options), options.processes)
    if name in OURS:
        workers = {OURS[name]: getattr(options, OURS[name])}
        batches = headrace_batches(folder / "headrace", FIELDS[options.format], **workers)
    else:
        peer, how = name.split(", ")
        make = with_pillow if how == PILLOW else partial(with_cv2, field=FIELDS[options.format])
        place, share = folder / PEERS[peer].stored, Share(workers=options.processes)
        batches = PEERS[peer].read(place, BATCH_SIZE, share, make)
    return delivered(batches, len, options.seconds)


def encoded(jpeg: bytes, options: argparse.Namespace) -> bytes:
    """An image in the format and size that is asked for."""
    if (options.format, options.size) == ("jpeg", WIDTH):
        return jpeg
    pixels = simplejpeg.decode_jpeg(jpeg, "BGR")
    pixels = cv2.resize(pixels, (options.size, options.size * HEIGHT // WIDTH), interpolation=cv2.INTER_CUBIC)
    if options.format == "jpeg":
        return simplejpeg.encode_jpeg(pixels, QUALITY, "BGR", "420")
    quality = [cv2.IMWRITE_WEBP_QUALITY, QUALITY] if options.format == "webp" else []
    return cv2.imencode(f".{options.format}", pixels, quality)[1].tobytes()


def write_all(folder: Path, names: list[str], options: argparse.Namespace) -> float:
    """The same images for headrace and the peers, and as loose files; their mean size in bytes."""
    images = [encoded(image, options) for image in make_images(options.images)]
    hr.pack(({FIELDS[options.format]: image} for image in images), folder / "headrace")
    for peer in [PEERS["DataLoader over loose files"], *map(PEERS.__getitem__, names)]:
        if not (folder / peer.stored).exists():
            peer.write(folder / peer.stored, iter(images))
    return sum(map(len, images)) / len(images)


def compared(rates: dict[str, Spread], names: list[str]) -> dict[str, Spread]:
    """Shares of the ceiling; ratios to the best peer with the same function, and to each one with Pillow."""
    figures = {}
    for ours, ceiling in zip(OURS, CEILINGS, strict=True):
        figures[f"{ours} / {ceiling}"] = ratio(rates[ours], rates[ceiling])
        equals = [f"{name}, {EQUAL}" for name in names]
        if equals:
            best = max(equals, key=lambda name: rates[name].median)
            figures[f"{ours} / {best}, the best of these"] = ratio(rates[ours], rates[best])
        figures |= {f"{ours} / {name}, {PILLOW}": ratio(rates[ours], rates[f"{name}, {PILLOW}"]) for name in names}
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, help="images in the dataset")
    parser.add_argument("--format", choices=FIELDS, default="jpeg")
    parser.add_argument("--size", type=int, default=WIDTH, help="width of the images in pixels")
    parser.add_argument("--threads", type=int, default=2, help="threads of headrace's loader process, and of a ceiling")
    parser.add_argument("--processes", type=int, default=2, help="workers of headrace, of peers and of a ceiling")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure_here(options.here[0], Path(options.here[1]), options)))
        return
    names = installed(options.peers)
    with tempfile.TemporaryDirectory() as folder:
        mean_bytes = write_all(Path(folder), names, options)
        candidates = [*CEILINGS, *OURS, *(f"{name}, {how}" for name in names for how in (EQUAL, PILLOW))]
        measures = {name: partial(in_own_process, __file__, options, name, folder) for name in candidates}
        rates = rounds(measures, options.rounds)
    finish(
        f"{options.format} decode + random resized crop to 224 + flip, batch 128, images/s",
        {**rates, **compared(rates, names)},
        mean_bytes=mean_bytes,
        versions=versions("webdataset", "mosaicml-streaming", "litdata", "grain", "spdl", "pillow", "simplejpeg"),
        **given(options),
    )


if __name__ == "__main__":
    main()
