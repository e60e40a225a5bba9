"""Functions that hold the interpreter's lock: samples/s by processes, beside PyTorch's DataLoader with as many workers.

    python benchmarks/feed_processes.py [--processes 2] [--rounds 5] [--images 2000]

Three functions: a tokenizer in plain Python over texts of 6 kB; Pillow's decoding, crop, resize and flip of JPEGs of
117 KB, as torchvision's reference recipe does it; and numpy's noise on its pixels, drawn from the global generator. The
DataLoader reads the same stream of the same shards by the same function, so that what differs is how batches come to
the trainer. Each measurement is a process of its own; the two take turns. The share of the cores that was busy is that
of the whole machine, so nothing else should run. Aim: at least 1.1 times the DataLoader, cores busy over 95 %.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

import headrace as hr
from make_images import write_images
from measure import Spread, finish, ratio

SECONDS = 6.0
WARM_UP_BATCHES = 8
SIDE, NUM_TOKENS, BATCH_SIZE = 224, 1024, 64
Sample = dict[str, Any]
WORDS = re.compile(r"\w+|[^\w\s]")


def tokenized(sample: Sample) -> Sample:
    """A tokenizer in plain Python: words to numbers, by a hash that is the same in every process."""
    numbers = []
    for word in WORDS.findall(sample["txt"]):
        number = 5381
        for character in word:
            number = (number * 33 + ord(character)) % 50_000
        numbers.append(number)
    return {"__key__": sample["__key__"], "tokens": np.array(numbers[:NUM_TOKENS], np.int64)}


def by_pillow(sample: Sample, rng: np.random.Generator) -> Sample:
    """RandomResizedCrop's usual case and a flip, by Pillow."""
    image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
    side = int(min(image.size) * (0.3 + 0.7 * rng.random()))
    left, top = (int(rng.integers(length - side + 1)) for length in image.size)
    image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return {"__key__": sample["__key__"], "image": np.asarray(image)}


def noisy(sample: Sample, rng: np.random.Generator) -> Sample:
    """The same with noise from the global generator, which is seeded for each sample."""
    made = by_pillow(sample, rng)
    noise = np.random.normal(0, 8, (SIDE, SIDE, 3))
    return {**made, "image": np.clip(made["image"] + noise, 0, 255).astype(np.uint8)}


FUNCTIONS: dict[str, tuple[str, Callable[..., Sample]]] = {
    "tokenizer": ("texts", tokenized),
    "Pillow": ("images", by_pillow),
    "Pillow and noise": ("images", noisy),
}


def texts(count: int) -> Iterator[Sample]:
    """Texts of some thousand words that are made up."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, n)) for n in rng.integers(2, 10, 5000)]
    for number in range(count):
        yield {"__key__": f"{number:06d}", "txt": " ".join(words[i] for i in rng.integers(0, 5000, 1000))}


def stream(folder: Path, name: str) -> hr.Stream:
    """The stream that both read."""
    source, function = FUNCTIONS[name]
    found = hr.Stream(hr.open(folder / source), epochs=None)
    return (found.decode() if source == "texts" else found).map(function)


def rate_here(loader: str, folder: Path, name: str, processes: int) -> dict[str, float]:
    """Samples/s of one loader, and the share of the cores that was busy."""
    if loader == "headrace":
        batches: Any = hr.Loader(stream(folder, name), batch_size=BATCH_SIZE, processes=processes)
    else:
        batches = DataLoader(stream(folder, name), batch_size=BATCH_SIZE, num_workers=processes, collate_fn=stacked)
    count, began, before = 0, time.perf_counter(), busy_sec()
    for number, batch in enumerate(batches):
        count += len(batch["__key__"])
        if number == WARM_UP_BATCHES:
            count, began, before = 0, time.perf_counter(), busy_sec()
        if time.perf_counter() - began > SECONDS and number > WARM_UP_BATCHES:
            break
    sec = time.perf_counter() - began
    return {"rate": count / sec, "busy": (busy_sec() - before) / sec / len(os.sched_getaffinity(0))}


def stacked(samples: list[Sample]) -> Sample:
    """A batch as the loader of headrace makes it: arrays as one tensor, keys as a list."""
    from torch.utils.data import default_collate

    keys = [sample.pop("__key__") for sample in samples]
    return {"__key__": keys, **default_collate(samples)}


def busy_sec() -> float:
    """Seconds for which the machine's cores were at work, summed."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:10])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def measured(loader: str, folder: Path, name: str, processes: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--here", loader, str(folder), name, str(processes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="worker processes, of both")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--here", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        loader, folder, name, processes = options.here
        print(json.dumps(rate_here(loader, Path(folder), name, int(processes))))
        return
    figures: dict[str, Spread] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_images(folder / "loose", options.images)
        hr.pack(folder / "loose", folder / "images")
        hr.pack(texts(options.texts), folder / "texts")
        for name in FUNCTIONS:
            found: dict[str, list[dict[str, float]]] = {"headrace": [], "DataLoader": []}
            for number in range(options.rounds):
                for loader in list(found)[:: 1 if number % 2 else -1]:
                    found[loader].append(measured(loader, folder, name, options.processes))
                    print(f"  round {number + 1} {name}, {loader}: {found[loader][-1]}", file=sys.stderr)
            rates = {loader: Spread(tuple(one["rate"] for one in all_)) for loader, all_ in found.items()}
            figures |= {f"{name}: {loader}, samples/s": rate for loader, rate in rates.items()}
            figures[f"{name}: headrace / DataLoader"] = ratio(rates["headrace"], rates["DataLoader"])
            figures[f"{name}: cores busy with headrace"] = Spread(tuple(one["busy"] for one in found["headrace"]))
    inputs = {key: value for key, value in vars(options).items() if key != "here"}
    finish(f"functions that hold the interpreter's lock, {options.processes} processes", figures, **inputs)


if __name__ == "__main__":
    main()
