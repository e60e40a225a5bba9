"""Randomness that belongs to a sample, not to the worker that happens to transform it.

A generator is keyed by (seed, epoch, position), so that augmentation is as exact and resumable as the order. Philox is
a counter-based generator: seed and epoch are its key, the position is a word of its counter, so that any two positions
have streams that never meet (each is 2^64 draws long) and making one costs about 6 microseconds. The numbers are part
of what a run is: the definition does not change between releases.
"""

from __future__ import annotations

import random
import sys

import numpy as np
from numpy.random import Generator, Philox

_WORD = 2**64
_SAMPLE, _GLOBALS, _BATCH = 0, 1, 2  # the third word of the counter: what the stream is for


def sample_rng(seed: int, epoch: int, position: int) -> Generator:
    """The generator of the sample at `position` of `epoch`: the same numbers wherever and whenever it is made."""
    return Generator(_philox(seed, epoch, position, _SAMPLE))


def batch_rng(seed: int, epoch: int, position: int) -> Generator:
    """The generator of the batch whose first sample is at `position` of `epoch`; apart from that sample's own."""
    return Generator(_philox(seed, epoch, position, _BATCH))


def seed_globals(seed: int, epoch: int, position: int) -> None:
    """Seed the global generators of `random`, numpy and (where the process has imported it) torch for one sample.

    For functions that draw from global generators. Only one thread of a process may transform samples then.
    """
    words = _philox(seed, epoch, position, _GLOBALS).random_raw(4)
    random.seed(int(words[0]))
    np.random.seed(words[1:3].view(np.uint32))
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(int(words[3]))


def _philox(seed: int, epoch: int, position: int, purpose: int) -> Philox:
    counter = np.array((0, position, purpose, 0), np.uint64)
    return Philox(counter=counter, key=np.array((seed % _WORD, epoch % _WORD), np.uint64))
