"""The hashes that `index.json` may have of a shard: all of hashlib's of a fixed length, and xxhash's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import xxhash

from headrace.errors import DamagedError, DatasetError

_XXHASH = {
    "xxh32": xxhash.xxh32,
    "xxh64": xxhash.xxh64,
    "xxh3_64": xxhash.xxh3_64,
    "xxh3_128": xxhash.xxh3_128,
    "xxh128": xxhash.xxh3_128,
}
HASHES = frozenset(_XXHASH) | {name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_")}


class Hashes:
    """Hashes of one file, taken on the way of reading it."""

    def __init__(self, expected: Mapping[str, str], name: str) -> None:
        """`expected` are hex digests by the name of the hash; `name` is what is hashed, for messages.

        Raises DatasetError for a hash that is not known here.
        """
        unknown = sorted(expected.keys() - HASHES)
        if unknown:
            raise DatasetError(
                f"{name} has the hash {unknown[0]!r} in its index.json, which cannot be checked here: take it out there"
            )
        self._expected, self._name = expected, name
        self._running: dict[str, Any] = {algorithm: _new(algorithm) for algorithm in expected}

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes in."""
        for running in self._running.values():
            running.update(data)

    def check(self) -> None:
        """Raise DamagedError if one of them is not what it has to be."""
        for algorithm, running in self._running.items():
            if running.hexdigest() != self._expected[algorithm]:
                raise DamagedError(
                    f"{self._name} is damaged: its {algorithm} is {running.hexdigest()}, not "
                    f"{self._expected[algorithm]} as index.json says; restore it"
                )


def _new(algorithm: str) -> Any:
    if algorithm in _XXHASH:
        return _XXHASH[algorithm]()
    return hashlib.new(algorithm, usedforsecurity=False)
