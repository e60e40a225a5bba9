"""The loader's own tuning against the best fixed setting: samples/s of {local, S3 30 ms late} x {raw, JPEG, tokens}.

    python benchmarks/autotune.py [--rounds 3] [--seconds 8] [--warm-up 30] [--threads 1 2 4] [--reads 16 64]
                                  [--cells "local raw" "s3 jpeg" ...]

A fixed setting is `threads=`, and from the store a number of reads in flight that does not change: for that the two
constants of the loader process between which it is tuned are made one. "tuned" is a loader that is told nothing. Every
measurement is a process of its own that begins anew; the tuned one is measured after the warm-up, in which it must have
found what it keeps, and notes when three seconds in a row first gave 0.95 of the round's best fixed rate (where they
never did, the whole run's length). Candidates take turns. The store is a server on this machine (`s3_server.py`); it
takes a share of the processors, and so does the loop that takes the batches. A run of three rounds, and one before them
that is not counted, takes about 45 minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

import headrace as hr
import headrace.load.client as client
import headrace.load.job as job_module
import headrace.load.reader as reader_module
from make_images import make_images
from measure import Spread, finish, ratio, rounds
from s3_server import BUCKET, serving

CELLS = [f"{where} {what}" for where in ("local", "s3") for what in ("raw", "jpeg", "tokens")]
BATCH_SIZES = {"raw": 400, "jpeg": 128, "tokens": 64}
DELAY_MS = 30.0
RECORD_BYTES, NUM_RECORDS = 114_660, 4_000
NUM_IMAGES, NUM_DISTINCT = 2_400, 600
NUM_TOKENS, WINDOW = 20_000_000, 1024
FIXED_WARM_UP_SEC = 3.0
STEADY_SEC, ENOUGH = 3, 0.95


def write_all(folder: Path) -> None:
    """The three datasets."""
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, 64 * RECORD_BYTES, np.uint8).tobytes()
    starts = range(0, NUM_RECORDS * 4_096, 4_096)
    records = (content[at : at + RECORD_BYTES] for at in (start % (63 * RECORD_BYTES) for start in starts))
    hr.pack(({"bin": record} for record in records), folder / "raw")
    images = list(make_images(NUM_DISTINCT))
    numbers = range(NUM_IMAGES)
    hr.pack(({"jpg": images[i % NUM_DISTINCT], "cls": i % 10} for i in numbers), folder / "jpeg")
    hr.pack([{"tokens": rng.integers(0, 50_000, NUM_TOKENS, np.uint16)}], folder / "tokens", format="tokens")


def stream_of(what: str, url: str) -> hr.Stream:
    """What is done to the samples of one of them, without end."""
    dataset = hr.open(f"{url}/{what}")
    if what == "tokens":
        return hr.Stream(dataset.windows(WINDOW), epochs=None)
    stream = hr.Stream(dataset, epochs=None)
    if what == "raw":
        return stream
    return stream.decode().map(hr.transform.RandomResizedCrop(224)).map(hr.transform.RandomHorizontalFlip())


def fix_reads(num_reads: int) -> None:
    """From here on as many reads of a store are in flight, in loader processes of this process, all the time."""

    def fixed(job: Any) -> Any:
        reader_module.REMOTE_READERS = job_module.MOST_REMOTE_READERS = num_reads
        return job

    class Fixed:
        """A job that, where it is unpickled, fixes the number there."""

        def __init__(self, job: Any) -> None:
            self._job = job

        def __reduce__(self) -> Any:
            return fixed, (self._job,)

    job_module.MOST_REMOTE_READERS = num_reads
    client._described = lambda job: cloudpickle.dumps(Fixed(job))


def measure_here(cell: str, url: str, setting: dict[str, int], warm_up_sec: float, seconds: float) -> None:
    """Print samples/s after the warm-up, and the batches that came in each second from the start on."""
    if "reads" in setting:
        fix_reads(setting["reads"])
    what = cell.split()[1]
    stream, size = stream_of(what, url), BATCH_SIZES[what]
    came = [0] * int(warm_up_sec + seconds + 1)
    with hr.Loader(stream, batch_size=size, threads=setting.get("threads"), cache_decoded=None) as loader:
        batches = iter(loader)
        next(batches)
        began, num_measured = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < warm_up_sec + seconds:
            next(batches)
            came[int(passed)] += size
            num_measured += size * (passed >= warm_up_sec)
        rate = num_measured / (time.perf_counter() - began - warm_up_sec)
        stages = loader.meters()["stages"]
        found = {"threads": loader.meters()["threads"], "reads": stages["read"]["threads"]}
    print(json.dumps({"rate": rate, "came": came, "found": found}))


def measured(cell: str, url: str, setting: dict[str, int], options: argparse.Namespace) -> dict[str, Any]:
    """The same in a process of its own."""
    warm_up_sec = FIXED_WARM_UP_SEC if setting else options.warm_up
    arguments = [cell, url, json.dumps(setting), str(warm_up_sec), str(options.seconds)]
    command = [sys.executable, __file__, "--here", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def seconds_until(came: list[int], rate: float) -> float:
    """The second from which on STEADY_SEC of them gave so much; where there is none, how many there are."""
    sums = (sum(came[first : first + STEADY_SEC]) for first in range(len(came) - STEADY_SEC))
    return float(next((first for first, total in enumerate(sums) if total >= STEADY_SEC * rate), len(came)))


def sweep(cell: str, url: str, options: argparse.Namespace) -> tuple[dict[str, Spread], list[dict[str, int]]]:
    """The figures of one cell, and what the tuned loader had found each time."""
    numbers = {"threads": options.threads} | ({"reads": options.reads} if cell.startswith("s3") else {})
    fixed = [dict(zip(numbers, one, strict=True)) for one in itertools.product(*numbers.values())]
    settings = {", ".join(f"{name}={number}" for name, number in one.items()): one for one in fixed} | {"tuned": {}}
    answers: list[dict[str, Any]] = []

    def rate_of(name: str) -> float:
        answer = measured(cell, url, settings[name], options)
        if name == "tuned":
            answers.append(answer)
        return float(answer["rate"])

    rates = rounds({name: lambda name=name: rate_of(name) for name in settings}, options.rounds)
    answers = answers[1:]  # the first round is not counted
    best = max((rates[name] for name in settings if name != "tuned"), key=lambda rate: rate.median)
    reached = [seconds_until(one["came"], ENOUGH * rate) for one, rate in zip(answers, best.values, strict=True)]
    figures = {f"{cell}, {name}, samples/s": rate for name, rate in rates.items()}
    figures[f"{cell}, tuned / best fixed"] = ratio(rates["tuned"], best)
    figures[f"{cell}, seconds to {ENOUGH} of it"] = Spread(tuple(reached))
    return figures, [answer["found"] for answer in answers]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="measured of each")
    parser.add_argument("--warm-up", type=float, default=30.0, help="seconds for the tuned loader")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--reads", type=int, nargs="+", default=[16, 64], help="in flight from the store")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--here", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        cell, url, setting, warm_up, seconds = options.here
        measure_here(cell, url, json.loads(setting), float(warm_up), float(seconds))
        return
    figures, found = {}, {}
    with tempfile.TemporaryDirectory() as name:
        write_all(Path(name, BUCKET))
        with serving(Path(name), DELAY_MS) as environment:
            os.environ.update(environment)
            urls = {"local": f"{name}/{BUCKET}", "s3": f"s3://{BUCKET}"}
            for cell in options.cells:
                some, found[cell] = sweep(cell, urls[cell.split()[0]], options)
                figures |= some
    inputs = {key: value for key, value in vars(options).items() if key != "here"}
    finish("tuned against the best fixed setting", figures, found=found, delay_ms=DELAY_MS, **inputs)


if __name__ == "__main__":
    main()
