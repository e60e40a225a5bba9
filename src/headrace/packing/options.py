"""What a pack was asked to do, checked before any work, and its digest: the same digest, the same shards."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import orjson
import xxhash

from headrace.errors import OptionError
from headrace.formats import Format
from headrace.packing.pipeline import Selection, Step

OnError = Literal["raise", "skip"]

PACKING_VERSION = 3
"""Part of every request: to be raised when the same source and options would give other shards than before."""

_FRACTIONS_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Validated options of one pack."""

    format: Format
    shard_size: int
    """Bytes; a shard is larger only if its single sample is."""
    selections: tuple[Selection, ...]
    """Which samples are packed, asked in this order."""
    steps: tuple[Step, ...]
    """What is done to each sample, in this order."""
    split: Mapping[str, float] | None
    shuffle: bool
    seed: int
    workers: int
    resume: bool
    overwrite: bool
    append: bool
    files: str | None
    """The column of a table whose values name files."""
    query: str | None
    """SQL that gives the samples."""
    on_error: OnError

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise OptionError(f"on_error must be 'raise' or 'skip': got {self.on_error!r}")
        if not isinstance(self.seed, int):
            raise OptionError(f"seed must be a whole number: got {self.seed!r}")
        if not isinstance(self.workers, int) or self.workers < 1:
            raise OptionError(f"workers must be at least 1: got {self.workers!r}")
        for name, value in (("files", self.files), ("query", self.query)):
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise OptionError(f"{name} must be text that is not empty: got {value!r}")
        if self.append and self.overwrite:
            raise OptionError("append adds to what is there and overwrite replaces it: give one of them")
        if self.split is not None:
            _check_split(self.split)

    def request(self, source_identity: str, split_name: str | None) -> str:
        """Digest of all that decides the shards' bytes; workers and what is done about errors do not."""
        content = {
            "packing": PACKING_VERSION,
            "source": source_identity,
            "selections": [repr(selection) for selection in self.selections],
            "steps": [repr(step) for step in self.steps],
            "format": self.format.name,
            "shard_size": self.shard_size,
            "split": None if self.split is None else list(self.split.items()),
            "split_name": split_name,
            "shuffle": self.shuffle,
            "seed": str(self.seed),
        }
        return xxhash.xxh3_128_hexdigest(orjson.dumps(content))


def usable_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


def _check_split(split: Mapping[str, float]) -> None:
    if not isinstance(split, Mapping) or not split:
        raise OptionError(f"split must give names and fractions, like {{'train': 0.9, 'test': 0.1}}: got {split!r}")
    for name, fraction in split.items():
        if not isinstance(name, str) or not name.isprintable() or name in ("", ".", "..") or "/" in name:
            raise OptionError(f"the name of a split must be that of a folder: got {name!r}")
        if not isinstance(fraction, int | float) or not (math.isfinite(fraction) and 0 < fraction <= 1):
            raise OptionError(f"the fraction of split {name!r} must be over 0 and at most 1: got {fraction!r}")
    total = math.fsum(split.values())
    if abs(total - 1) > _FRACTIONS_TOLERANCE:
        raise OptionError(f"the fractions of a split must add up to 1: got {dict(split)} with the sum {total:.6g}")
