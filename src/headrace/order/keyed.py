"""Keyed randomness on integers: the same everywhere, for ever.

numpy may change what its generators draw from one release to the next; an order that must survive releases is built
on SplitMix64 instead (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), whose arithmetic
is fixed here. Its output function is a bijection of 64-bit numbers, so hashes of distinct inputs never tie.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1
_HALF_ROUNDS = 3


def hash_sequence(keys: U64, index: U64) -> U64:
    """Element `index` of the SplitMix64 sequence that starts at `keys`; the two arrays are broadcast."""
    with np.errstate(over="ignore"):
        z = keys + (index + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MULTIPLIER_1
        z = (z ^ (z >> np.uint64(27))) * _MULTIPLIER_2
        hashed: U64 = z ^ (z >> np.uint64(31))
        return hashed


def derive_key(*parts: int) -> int:
    """A 64-bit key that depends on every part and on their order."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = hash_sequence(key, np.array([part & _MASK], np.uint64))
    return int(key[0])


def permutation(key: int, size: int) -> I64:
    """The numbers 0 to size - 1 in an order that the key decides."""
    hashes = hash_sequence(np.array([key], np.uint64), np.arange(size, dtype=np.uint64))
    return np.argsort(hashes).astype(np.int64, copy=False)


def permutation_rows(keys: U64, sizes: I64) -> I64:
    """One permutation a row, shape (len(keys), max size); row r orders 0 to sizes[r] - 1 and ends with the rest."""
    width = int(sizes.max(initial=0))
    column = np.arange(width, dtype=np.uint64)
    hashes = hash_sequence(keys[:, None], column[None, :])
    outside = column[None, :].astype(np.int64) >= sizes[:, None]
    hashes[outside] = np.uint64(_MASK)
    # Stable, so that a row's own hash of 2^64 - 1 still comes before the columns outside it.
    return np.argsort(hashes, axis=1, kind="stable").astype(np.int64)


def permuted(keys: U64, size: int, values: U64) -> I64:
    """Where the permutation of 0 to size - 1 that each key decides puts each value: computed for these alone.

    An alternating Feistel network over pairs of numbers near the root of the size; the few that come out beyond the
    size go in again until they do not (Black, Rogaway: "Ciphers with arbitrary finite domains", 2002). Not the order
    that `permutation` gives for the same key. 0 < size < 2^62.
    """
    low_size = math.isqrt(size - 1) + 1
    placed = _network(keys, -(-size // low_size), low_size, values)
    while len(beyond := np.flatnonzero(placed >= np.uint64(size))):
        placed[beyond] = _network(keys[beyond], -(-size // low_size), low_size, placed[beyond])
    return placed.astype(np.int64)


def _network(keys: U64, high_size: int, low_size: int, values: U64) -> U64:
    """A permutation of 0 to high_size x low_size - 1 a key: either half is turned by a hash of the other, by turns."""
    high, low = np.divmod(values, np.uint64(low_size))
    for turn in range(_HALF_ROUNDS):
        high = (high + _turn(keys, low, 2 * turn)) % np.uint64(high_size)
        low = (low + _turn(keys, high, 2 * turn + 1)) % np.uint64(low_size)
    return high * np.uint64(low_size) + low


def _turn(keys: U64, half: U64, turn: int) -> U64:
    """A number below 2^63, so that a half added to it does not overflow, from a half below 2^32."""
    return hash_sequence(keys, half | np.uint64(turn << 32)) >> np.uint64(1)
