"""The loader process's say over the cache of decoded samples: whether it is used, and what it gave.

Where nobody asked for it, it is used only if it was found to pay and to fit: the stream comes back to its samples, its
steps were timed over the first of them, and all samples together take a modest part of the memory that is free.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from headrace.dataset.pieces import Pieces
from headrace.errors import StorageError
from headrace.load.decoded.options import DecodedOptions
from headrace.load.decoded.ram import RamStore
from headrace.load.decoded.steps import CachedSteps, Came, Origin
from headrace.load.decoded.store import base_bytes
from headrace.load.host import available_memory_bytes
from headrace.order import Run

NUM_TIMED = 64
"""Samples after which it is decided."""
LEAST_GAIN = 1.5
"""By how much the steps must become faster."""
LEAST_DECODE_SEC = 100e-6
"""Steps that take less are not what a feed waits for."""
MEMORY_SHARE = 4
"""All decoded samples must fit a quarter of what memory is free."""


@dataclass(frozen=True, slots=True)
class DecodedReading:
    """What the cache of decoded samples gave so far."""

    place: str | None = None
    """"ram" or the folder; None: it is not used."""
    why: str = ""
    hits: int = 0
    """Samples that were taken from it."""
    misses: int = 0
    """Samples that were decoded while it was used."""
    damaged: int = 0
    """Samples that it had, but damaged: they count as misses too."""
    bytes: int = 0
    """What was taken from it."""

    def after(self, before: DecodedReading) -> DecodedReading:
        """This one, with what was counted before."""
        return DecodedReading(
            self.place,
            self.why,
            self.hits + before.hits,
            self.misses + before.misses,
            self.damaged + before.damaged,
            self.bytes + before.bytes,
        )

    def as_dict(self) -> dict[str, Any]:
        """The same for `Loader.meters`."""
        return asdict(self)


class KeptSamples:
    """Which samples the cache has, by where they lie in the dataset. Thread-safe."""

    def __init__(self, steps: CachedSteps, pieces: Pieces) -> None:
        self.steps = steps
        self._starts = pieces.sample_starts
        self.is_on = not steps.plan.options.is_auto
        """Whether the cache is used."""

    def number(self, piece: int, sample: int) -> int | None:
        """The number in the store of a sample of a piece; None while the cache is not used."""
        return int(self._starts[piece]) + sample if self.is_on else None

    def has_run(self, run: Run) -> bool:
        """Whether it has all samples of a run, so that its stored bytes need not be read."""
        start = int(self._starts[run.piece])
        return self.is_on and self.steps.store.has_all(start + run.first, start + run.last)


class CacheControl(KeptSamples):
    """Decides, tells what is kept, and counts. Thread-safe."""

    def __init__(self, steps: CachedSteps, pieces: Pieces) -> None:
        """Raises StorageError where a cache that was asked for cannot be used."""
        super().__init__(steps, pieces)
        self._options = steps.plan.options
        self._lock = threading.Lock()
        self._hits = self._misses = self._damaged = self._bytes = 0
        self._timed: list[Came] = []
        self._is_decided = self.is_on
        self._why = ""
        if self.is_on:
            _ = steps.store
            self._why = _asked_for(self._options)

    def count(self, position: int, came: Iterable[Came | None]) -> None:
        """Take down how samples from a position on, counted over epochs, came about."""
        with self._lock:
            for one in came:
                if one is None:
                    continue
                if self.is_on:
                    self._count(one)
                elif not self._is_decided and len(self._timed) < NUM_TIMED:
                    self._timed.append(one)
            if not self._is_decided and len(self._timed) == NUM_TIMED and position >= self.steps.plan.begin:
                self._decide()

    def read(self) -> DecodedReading:
        """The sums so far."""
        with self._lock:
            why = self._why
            if self.is_on and not self.steps.store.takes_more:
                why += "; it takes no more, and what came first stays"
            place = self._options.place if self.is_on else None
            return DecodedReading(place, why, self._hits, self._misses, self._damaged, self._bytes)

    def _count(self, came: Came) -> None:
        if came.origin is Origin.KEPT:
            self._hits += 1
            self._bytes += came.num_bytes
        else:
            self._misses += 1
            self._damaged += came.origin is Origin.UNSOUND

    def _decide(self) -> None:
        self._is_decided = True
        decode_sec = sum(one.decode_sec for one in self._timed) / NUM_TIMED
        rest_sec = sum(one.rest_sec for one in self._timed) / NUM_TIMED
        shares = f"decoding takes {decode_sec * 1e3:.2g} of {(decode_sec + rest_sec) * 1e3:.2g} ms a sample"
        if decode_sec < LEAST_DECODE_SEC or decode_sec + rest_sec < LEAST_GAIN * rest_sec:
            self._why = f"decoded samples are not kept: {shares}"
            return
        mean_bytes = sum(one.num_bytes for one in self._timed) / NUM_TIMED
        try:
            self.is_on, fits = self._fits(mean_bytes)
        except StorageError as err:
            self._why = f"decoded samples are not kept: {err}"
            return
        if self.is_on:
            self._why = f"decoded samples are kept in RAM: {shares}, and {fits}"
        else:
            self._why = f"decoded samples are not kept: {shares}, but {fits}; cache_decoded=FOLDER keeps them on a disk"

    def _fits(self, mean_bytes: float) -> tuple[bool, str]:
        store, num_samples = self.steps.store, self.steps.plan.num_samples
        assert isinstance(store, RamStore)
        needed = base_bytes(num_samples) + round(num_samples * mean_bytes)
        # What the store holds already, of this run's other ranks or of another run, is not free any more.
        most = min(self._options.max_bytes, (available_memory_bytes() + store.used_bytes) // MEMORY_SHARE)
        verb = "fit" if needed <= most else "do not fit"
        return needed <= most, f"all of them, {_gib(needed)}, {verb} {_gib(most)}, a quarter of the free memory at most"


def _asked_for(options: DecodedOptions) -> str:
    return f"decoded samples are kept in {options.place}, up to {_gib(options.max_bytes)}, as cache_decoded says"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"
