"""The dataset that is streamed through faults, how it is streamed, and what is noted of each batch."""

import time
from dataclasses import dataclass, field

import numpy as np
import xxhash

import headrace as hr

NUM_SAMPLES, BATCH_SIZE = 240, 8
NUM_BATCHES = NUM_SAMPLES // BATCH_SIZE
MIDDLE = 8
"""So many batches have been taken when a fault strikes: more than half of the epoch is not read yet, see `loader`."""


def pack(folder):
    """240 samples of 4 KB in shards of 128 KiB."""
    rng = np.random.default_rng(7)
    samples = ({"__key__": f"{i:04d}", "npy": rng.random(1000, np.float32)} for i in range(NUM_SAMPLES))
    hr.pack(samples, folder, shard_size="128KiB", shuffle=False)


def loader(url, cache=None, **options):
    """A loader that reads little ahead, so that what happens to the data in the middle of the epoch is met."""
    dataset = hr.open(url) if cache is None else hr.open(url, cache=cache, cache_size="64MiB")
    stream = hr.Stream(dataset, seed=3, block_size="16KiB", partitions=2).decode().map(with_noise)
    return hr.Loader(stream, batch_size=BATCH_SIZE, **{"memory": "128KiB", "prefetch": 1, "threads": 2, **options})


def with_noise(sample, rng):
    return {**sample, "noise": rng.random()}


def noted(batch):
    """A batch's keys, contents and random numbers, such that they can be compared and sent as JSON."""
    digests = [xxhash.xxh3_64_hexdigest(row.tobytes()) for row in batch["npy"].numpy()]
    return [list(one) for one in zip(batch["__key__"], digests, batch["noise"].tolist(), strict=True)]


@dataclass
class Fed:
    """What a run has been given."""

    batches: list = field(default_factory=list)
    longest_wait_sec: float = 0.0
    """For a batch, once the first fault had struck."""

    def take(self, loader, strikes=()):
        """Take batches to the end. `strikes` has what is done when so many batches have been taken."""
        strikes = dict(strikes)
        batches, is_struck = iter(loader), False
        while True:
            if len(self.batches) in strikes:
                strikes.pop(len(self.batches))()
                is_struck = True
            began = time.monotonic()
            batch = next(batches, None)
            if is_struck:
                self.longest_wait_sec = max(self.longest_wait_sec, time.monotonic() - began)
            if batch is None:
                break
            self.batches.append(noted(batch))
        assert not strikes, "the run ended before all had happened"
        return self
