"""Raw records into the trainer's memory: GB/s of 114,660-byte records in batches of 400, checksums verified.

    python benchmarks/feed_raw.py [--records 4000] [--rounds 5] [--threads 2]

The ceiling is one core's memcpy of the same bytes, batch by batch, into memory that is touched already. Shards lie on
the local disk and, after the first pass, in the page cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import headrace as hr
from measure import finish, ratio, rounds

RECORD_BYTES, BATCH_SIZE = 114_660, 400
SECONDS = 3.0


def pack_records(target: Path, num_records: int) -> None:
    """Records of random bytes in tar shards."""
    rng = np.random.default_rng(0)
    hr.pack(({"bin": rng.bytes(RECORD_BYTES)} for _ in range(num_records)), target)


def memcpy_rate() -> float:
    """GB/s of one core copying batches of records."""
    source = np.random.default_rng(0).integers(0, 256, 4 * BATCH_SIZE * RECORD_BYTES, np.uint8)
    target = np.zeros(BATCH_SIZE * RECORD_BYTES, np.uint8)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        at = count % 4 * len(target)
        for place in range(0, len(target), RECORD_BYTES):
            target[place : place + RECORD_BYTES] = source[at + place : at + place + RECORD_BYTES]
        count += 1
    return count * len(target) / (time.perf_counter() - began) / 1e9


def feed_rate(dataset: hr.Dataset, threads: int) -> float:
    """GB/s that the trainer is given, after the first batches."""
    with hr.Loader(hr.Stream(dataset, epochs=None), batch_size=BATCH_SIZE, threads=threads) as loader:
        num_bytes, began = 0, 0.0
        for number, batch in enumerate(loader):
            if number < 4:  # the slots' first touch
                began = time.perf_counter()
                continue
            num_bytes += sum(len(record) for record in batch["bin"])
            if time.perf_counter() - began > SECONDS:
                return num_bytes / (time.perf_counter() - began) / 1e9
    raise AssertionError("an endless stream ended")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4000, help="records in the dataset")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="threads of the loader process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pack_records(Path(folder) / "packed", options.records)
        dataset = hr.open(Path(folder) / "packed")
        rates = rounds(
            {
                "ceiling: one core's memcpy, GB/s": memcpy_rate,
                "headrace, GB/s": lambda: feed_rate(dataset, options.threads),
            },
            options.rounds,
        )
    ceiling, feed = rates.values()
    finish(
        "raw records of 114,660 bytes delivered into the trainer's memory, batch 400",
        {**rates, "share of one core's memcpy": ratio(feed, ceiling)},
        **vars(options),
    )


if __name__ == "__main__":
    main()
