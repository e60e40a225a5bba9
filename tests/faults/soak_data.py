"""What the soak streams, and what has to come: the keys and contents of every global batch, by arithmetic alone."""

import zlib
from functools import lru_cache

import numpy as np

import headrace as hr

NUM_SAMPLES, SAMPLE_BYTES = 8_003, 900
"""12 MB in three shards. No epoch is a whole number of batches: three samples, others each time, are dropped."""
GLOBAL_BATCH = 4
STEPS = NUM_SAMPLES // GLOBAL_BATCH
WORLD_SIZES = (1, 1, 2, 4)


def pack(folder):
    hr.pack(_samples(), folder, shard_size="4MiB", shuffle=False)


def stream_of(dataset):
    """Its order: four partitions are read at a time at most, so an epoch goes through the blocks of the cache."""
    return hr.Stream(dataset, seed=7, partitions=12, block_size="1MiB", epochs=None).map(summed)


def summed(sample):
    return {"number": int(sample["__key__"]), "sum": zlib.crc32(sample["bin"])}


class Expected:
    """Sample numbers and checksums by (epoch, step)."""

    def __init__(self, stream):
        self._order = stream.order(1)
        self._starts = np.cumsum(self._order.piece_samples) - self._order.piece_samples
        self._sums = np.array([zlib.crc32(sample["bin"]) for sample in _samples()])
        self._numbers = lru_cache(2)(self._numbers_of)

    def batch(self, epoch, step):
        """(keys, numbers, checksums) of a global batch."""
        numbers = self._numbers(epoch)[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
        return [_key(number) for number in numbers], numbers.tolist(), self._sums[numbers].tolist()

    def _numbers_of(self, epoch):
        places = self._order.epoch(epoch).locate(np.arange(NUM_SAMPLES))
        return self._starts[places.piece] + places.sample


def _samples():
    rng = np.random.default_rng(0)
    for number in range(NUM_SAMPLES):
        yield {"__key__": _key(number), "bin": rng.bytes(SAMPLE_BYTES)}


def _key(number):
    return f"{number:06d}"
