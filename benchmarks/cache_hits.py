"""What a hit in the cache costs: reads of 114 KB and 4 MiB at random places, from a cache in a folder and in RAM.

    python benchmarks/cache_hits.py [--bytes 512MiB] [--rounds 7]

The ceiling is `pread` of the same bytes from a local file, in the page cache like all here. Measured is the time that
the reading thread is at work (CPU time), which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from headrace.storage import File, LocalFile, locate, parse_size
from headrace.storage.cache import CacheOptions, cached
from measure import finish, ratio, rounds

LENGTHS = {"114 KB": 114_660, "4 MiB": 4 << 20}
READ_BYTES = 256 << 20
"""Read in each round."""


def rate(file: File, length: int) -> Callable[[], float]:
    """Measures GB/s of reads of so many bytes at random places."""
    buffer = bytearray(length)

    def measured() -> float:
        rng = random.Random(0)
        places = [rng.randrange(file.size - length) for _ in range(READ_BYTES // length)]
        began = time.thread_time()
        for place in places:
            file.read_into(place, buffer)
        return length * len(places) / (time.thread_time() - began) / 1e9

    return measured


def fill(file: File) -> None:
    """Read all of a file, so that the cache holds it."""
    with file.stream() as stream:
        while stream.read(1 << 20):
            pass


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", default="512MiB")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    num_bytes = parse_size(options.bytes, "--bytes")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(np.random.default_rng(0).bytes(num_bytes))
        files: dict[str, File] = {"local file": LocalFile(path)}
        for name, where in (("folder", str(Path(folder, "cache"))), ("RAM", "ram")):
            cache = CacheOptions(where, 2 * num_bytes)
            files[name] = cached(lambda: LocalFile(path), cache, "file", num_bytes, place=locate(path))
            fill(files[name])
        figures = {}
        for words, length in LENGTHS.items():
            spreads = rounds({name: rate(file, length) for name, file in files.items()}, options.rounds)
            figures |= {f"{name}, reads of {words}, GB/s": spread for name, spread in spreads.items()}
            for name in ("folder", "RAM"):
                figures[f"{name}, reads of {words}, share of the local file"] = ratio(
                    spreads[name], spreads["local file"]
                )
    finish("a hit in the cache", figures, num_bytes=num_bytes, rounds=options.rounds)


if __name__ == "__main__":
    main()
