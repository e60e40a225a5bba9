"""How well samples of a class-sorted dataset are mixed, and what must be held for it, beside what peers' shuffles give.

    python benchmarks/shuffle_quality.py [--rounds 3] [--picture docs/shuffle.svg]

256,000 samples of 100 kB: 256 classes of 1,000, stored class after class in 400 shards of 64 MB. Each candidate is the
library's own shuffle, asked for the order of one epoch on one rank; no bytes are read. Of each order:

- class mixing: chi-square of the classes of batches of 256 against even shares, over the same of a full shuffle;
- adjacency: how often a sample and its storage neighbour meet in a batch, over the same of a full shuffle;
- held: what must be kept at once so that nothing is read twice: open blocks and windows (headrace), a buffer
  (WebDataset, HF), or the shards that are in use (MDS, on the local disk).

1 is a full shuffle. Then headrace streams a real class-sorted dataset: bytes read over bytes stored.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import headrace as hr
from headrace.order import Order
from headrace.order.keyed import I64
from measure import Spread, finish
from peers import load_streaming, versions
from picture import Curve, Panel, draw

NUM_CLASSES, CLASS_SAMPLES, SAMPLE_BYTES = 256, 1000, 100_000
NUM_SAMPLES = NUM_CLASSES * CLASS_SAMPLES
NUM_SHARDS, SHARD_SAMPLES, BATCH = 400, 640, 256
BUFFERS = (1, 100, 1000, 10_000, 100_000)
"""Samples; 1,000 is what Hugging Face's `shuffle` takes by default and WebDataset's examples use."""
WINDOWS = (0, None, 100, 300, 1000, NUM_SAMPLES // 48)
SIZES: tuple[dict[str, object], ...] = (
    {"block_size": 1 << 20},
    {"block_size": 1 << 18},
    {"block_size": SAMPLE_BYTES},
)
PARTITIONS = (96, 192, 384, 768)
DASHES = {"headrace, by partitions": "8 4", "headrace, by block size": "2 4"}
Shuffled = tuple[I64, float]
"""Samples in the order of an epoch, and the bytes that must be held at once."""


def headrace(seed: int, partitions: int = 48, **options: object) -> Shuffled:
    """Open blocks and windows, which headrace's reader holds."""
    samples = np.full(NUM_SHARDS, SHARD_SAMPLES)
    order = Order(samples, samples * SAMPLE_BYTES, seed, True, partitions, **options)  # type: ignore[arg-type]
    places = order.epoch(0).locate(np.arange(NUM_SAMPLES))
    runs = list(order.epoch(0).runs(0, 1))
    sizes = np.array([run.last - run.first for run in runs]) * SAMPLE_BYTES
    return places.piece * SHARD_SAMPLES + places.sample, most_held(
        np.array([run.need for run in runs]), np.array([run.done for run in runs]), sizes
    )


def mds(seed: int, block_size: int) -> Shuffled:
    """The shards that are in use: py1e, for one node."""
    load_streaming()
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shards are larger than a small block
        shuffled = get_shuffle("py1e", np.full(NUM_SHARDS, SHARD_SAMPLES), 1, seed, 0, block_size)
    dealt = get_partitions("relaxed", NUM_SAMPLES, 1, 1, 1, 1, BATCH).reshape(-1)
    order = shuffled[dealt[dealt >= 0]]
    shards, places = order // SHARD_SAMPLES, np.arange(len(order))
    first, last = np.full(NUM_SHARDS, len(order)), np.zeros(NUM_SHARDS, np.int64)
    np.minimum.at(first, shards, places)
    np.maximum.at(last, shards, places)
    return order, most_held(first, last + 1, np.full(NUM_SHARDS, SHARD_SAMPLES * SAMPLE_BYTES))


def webdataset(seed: int, buffer: int) -> Shuffled:
    """Shards in random order, then the buffer of `wds.shuffle`."""
    import webdataset as wds

    def expand(shards: Iterator[dict[str, str]]) -> Iterator[int]:
        for shard in shards:
            first = int(shard["url"]) * SHARD_SAMPLES
            yield from range(first, first + SHARD_SAMPLES)

    rng = random.Random(seed)
    urls = wds.SimpleShardList([str(k) for k in range(NUM_SHARDS)])
    stages = wds.shuffle(NUM_SHARDS, initial=NUM_SHARDS, rng=rng), expand, wds.shuffle(buffer, rng=rng)
    order = np.fromiter(wds.DataPipeline(urls, *stages), np.int64)
    return order, float(buffer * SAMPLE_BYTES)


def hugging_face(seed: int, buffer: int) -> Shuffled:
    """Shards in random order, then the buffer of `IterableDataset.shuffle`."""
    import datasets

    def generate(shards: list[int]) -> Iterator[dict[str, int]]:
        for shard in shards:
            for sample in range(shard * SHARD_SAMPLES, (shard + 1) * SHARD_SAMPLES):
                yield {"sample": sample}

    stored = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": list(range(NUM_SHARDS))})
    shuffled = stored.shuffle(seed=seed, buffer_size=buffer)
    return np.fromiter((row["sample"] for row in shuffled), np.int64), float(buffer * SAMPLE_BYTES)


def most_held(first: I64, end: I64, num_bytes: I64) -> float:
    """The most bytes at one time of things that are each held from position `first` to `end` - 1."""
    times = np.concatenate((end, first))  # what ends at a position makes room for what begins there
    change = np.concatenate((-num_bytes, num_bytes))
    return float(np.cumsum(change[np.argsort(times, kind="stable")]).max())


def chi_square(order: I64, batch_size: int = BATCH, num_classes: int = NUM_CLASSES) -> float:
    """Mean over the full batches of the classes' chi-square against even shares."""
    classes = order[: len(order) // batch_size * batch_size] // (len(order) // num_classes)
    batch = np.arange(len(classes)) // batch_size
    cells = (len(classes) // batch_size) * num_classes
    counts = np.bincount(batch * num_classes + classes, minlength=cells).reshape(-1, num_classes)
    expected = batch_size / num_classes
    return float(((counts - expected) ** 2 / expected).sum(axis=1).mean())


def adjacency(order: I64) -> float:
    """Share of the samples that meet their next in storage in one batch."""
    batch = np.empty(len(order), np.int64)
    batch[order] = np.arange(len(order)) // BATCH
    return float((batch[1:] == batch[:-1]).mean())


def candidates() -> dict[str, dict[str, Callable[[int], Shuffled]]]:
    """Curve -> setting -> the shuffle of a seed."""
    windows = {_window_name(w): lambda seed, w=w: headrace(seed, window=w) for w in WINDOWS}
    sizes = {f"block_size {o['block_size']:,}": lambda seed, o=o: headrace(seed, **o) for o in SIZES}
    parts = {f"partitions {p}": lambda seed, p=p: headrace(seed, partitions=p) for p in PARTITIONS}
    curves: dict[str, dict[str, Callable[[int], Shuffled]]] = {
        "headrace, by window": windows,
        "headrace, by partitions": {_window_name(None): windows[_window_name(None)], **parts},
        "headrace, by block size": {_window_name(None): windows[_window_name(None)], **sizes},
        "MDS py1e, by block size": {
            f"block {b:,}": lambda seed, b=b: mds(seed, b) for b in (1000, 4000, 16_000, 64_000, 4_000_000)
        },
        "WebDataset, by buffer": {f"buffer {b:,}": lambda seed, b=b: webdataset(seed, b) for b in BUFFERS},
        "HF streaming, by buffer": {f"buffer {b:,}": lambda seed, b=b: hugging_face(seed, b) for b in BUFFERS},
    }
    return curves


def _window_name(window: int | None) -> str:
    return "default (48 partitions, a window of a block)" if window is None else f"window {window:,}"


def measure(num_rounds: int) -> dict[str, dict[str, list[tuple[float, float, float]]]]:
    """Curve -> setting -> (share of the dataset held, class mixing, adjacency) of each round."""
    results: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for seed in range(num_rounds):
        full = np.random.default_rng(seed).permutation(NUM_SAMPLES)
        base = chi_square(full), adjacency(full)
        for curve, settings in candidates().items():
            for setting, shuffle in settings.items():
                try:
                    order, held = shuffle(seed)
                except ImportError as err:
                    print(f"  {curve}: left out, {err}", file=sys.stderr)
                    break
                assert len(np.unique(order)) == NUM_SAMPLES
                share = held / (NUM_SAMPLES * SAMPLE_BYTES)
                value = share, chi_square(order) / base[0], adjacency(order) / base[1]
                results.setdefault(curve, {}).setdefault(setting, []).append(value)
                print(f"  round {seed + 1}/{num_rounds} {curve} {setting}: {value}", file=sys.stderr)
    return results


def other_cases() -> dict[str, Spread]:
    """Class mixing of headrace where the batch is large, the dataset small, or storage in random order."""
    figures = {}
    full = np.random.default_rng(0).permutation(NUM_SAMPLES)
    for options in ({}, {"window": 1000}, {"partitions": 2016}):
        mixing = chi_square(headrace(0, **options)[0], 2048) / chi_square(full, 2048)
        figures[f"headrace, batches of 2,048, {options or 'default'}: class mixing"] = Spread((mixing,))
    stored = np.random.default_rng(1).permutation(NUM_SAMPLES)
    figures["headrace, storage in random order, default: class mixing"] = Spread(
        (chi_square(stored[headrace(0)[0]]) / chi_square(full),)
    )
    samples = np.full(50, 1000)
    for options in ({}, {"window": 300}, {"partitions": 240}):
        order = Order(samples, samples * 3000, 0, True, **{"partitions": 48, **options})
        places = order.epoch(0).locate(np.arange(50_000))
        mixing = chi_square(places.piece * 1000 + places.sample, num_classes=10)
        mixing /= chi_square(np.random.default_rng(0).permutation(50_000), num_classes=10)
        name = f"headrace, 50,000 samples of 3 kB in 10 classes, {options or 'default'}: class mixing"
        figures[name] = Spread((mixing,))
    return figures


def read_amplification() -> dict[str, Spread]:
    """Bytes read over bytes stored by a real Loader, from the end of the first epoch to that of the 31st.

    It reads ahead into epochs to come, now more and now less: over 30 that is up to 0.1 of this small dataset.
    """
    figures = {}
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        samples = ({"bin": rng.bytes(2000), "cls": i // 100} for i in range(12_800))
        hr.pack(samples, name, shuffle=False, shard_size="1MiB")
        dataset = hr.open(name)
        stored = int(dataset.manifest.shards.bytes.sum())
        for window in (0, None, 100, len(dataset) // 48):
            stream = hr.Stream(dataset, window=window, block_size="64KiB", epochs=31)
            read = []
            with hr.Loader(stream, batch_size=256, drop_last=False) as loader:
                for step, _ in enumerate(loader, 1):
                    if step % loader.steps_per_epoch == 0:
                        read.append(loader.meters()["stages"]["read"]["bytes"])
            figures[f"bytes read over bytes stored, window {window}"] = Spread(((read[30] - read[0]) / (30 * stored),))
    return figures


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    results = measure(options.rounds)
    figures = {}
    names = "share of the dataset held", "class mixing", "adjacency"
    for curve, settings in results.items():
        for setting, values in settings.items():
            for name, one in zip(names, zip(*values, strict=True), strict=True):
                figures[f"{curve}: {setting}: {name}"] = Spread(one)
    figures |= other_cases() | read_amplification()
    if options.picture:
        options.picture.write_text(draw(_panels(results)))
    finish(
        "class mixing and adjacency over a full shuffle's, batches of 256 of a class-sorted dataset",
        figures,
        rounds=options.rounds,
        peers=versions("webdataset", "mosaicml-streaming", "datasets"),
    )


def _panels(results: dict[str, dict[str, list[tuple[float, float, float]]]]) -> list[Panel]:
    panels = []
    for column, title in (
        (1, "class mixing of a batch (1: a full shuffle)"),
        (2, "storage neighbours in a batch (1: full)"),
    ):
        curves = []
        for curve, settings in results.items():
            medians = [tuple(np.median(values, axis=0)) for values in settings.values()]
            points = sorted((float(m[0]) * 100, float(m[column])) for m in medians)
            curves.append(Curve(curve, points, DASHES.get(curve, "")))
        panels.append(Panel(title, "held at once, % of the dataset", curves))
    return panels


if __name__ == "__main__":
    main()
