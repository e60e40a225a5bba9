"""Another library's loader at full rate: asked for batch after batch, by one who computes nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

from headrace.bench.rates import Count
from headrace.errors import OptionError
from headrace.load.foreign import loader_facts, num_bytes, num_samples, raw_loader

_LEAST_SEC = 0.25
"""As for headrace's own feed: shorter says little."""
_MOST_TIMES = 4
_TRIALS = 3
_LONGEST_NAP_SEC = 1.0
_LOOKED_AT = 3


class ForeignFeed:
    """A loader that is asked for batches now and then; iterated again whenever it ends. For one thread."""

    def __init__(self, loader: Iterable[Any], batch_size: int | None) -> None:
        """Take its first batch. `batch_size`: samples of a batch, where batches do not show it.

        Raises OptionError for one without batches, or whose batches' samples cannot be counted.
        """
        self.facts = loader_facts(loader)
        self._loader = loader = raw_loader(loader)
        self._batch_size = batch_size
        self.epochs = 1
        """Begun so far."""
        began = time.perf_counter()
        self._batches = iter(loader)
        first = self._next()
        self.first_batch_sec = time.perf_counter() - began
        self.batch_size = batch_size or num_samples(first, self.facts.batch_size)
        """Samples of its first batch."""
        if not self.batch_size:
            raise OptionError("the loader's batches do not show how many samples they have: say batch_size=")
        looked_at = [first, *(self._next() for _ in range(_LOOKED_AT - 1))]
        self.bytes_per_sample = sum(map(num_bytes, looked_at)) / sum(map(self._count_of, looked_at))

    def rate(self, window_sec: float) -> Count:
        """How fast batches come. What was made ahead is taken first, for as long as the window or a little more.

        Where an epoch of its ends, the start of the next one is left out, up to what is made ahead in it: it comes once
        an epoch, and epochs of few batches would consist of it.
        """
        window_sec = max(_LEAST_SEC, window_sec)
        began, taken = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < window_sec or (
            taken < self.facts.num_ahead and passed < _MOST_TIMES * window_sec
        ):
            self._next()
            taken += 1
        began, samples, left_out_sec = time.perf_counter(), 0, 0.0
        while not samples or time.perf_counter() - began - left_out_sec < window_sec:
            before, epoch = time.perf_counter(), self.epochs
            batch = self._next()
            if self.epochs != epoch and before - began < _MOST_TIMES * window_sec:
                for _ in range(self.facts.num_ahead):
                    self._next()
                left_out_sec += time.perf_counter() - before
                continue
            samples += self._count_of(batch)
        sec = time.perf_counter() - began - left_out_sec
        return Count(samples, round(samples * self.bytes_per_sample), sec)

    def overlaps(self, samples_per_sec: float) -> bool:
        """Whether it makes batches while nobody asks. Where it does not say of its workers, it is tried: after a pause
        of as long as a batch takes, the next one is there, or is still to be made."""
        if self.facts.num_workers is not None:
            return self.facts.num_workers > 0
        sec = self.batch_size / samples_per_sec
        waits = []
        for _ in range(_TRIALS):
            time.sleep(min(_LONGEST_NAP_SEC, sec))
            began = time.perf_counter()
            self._next()
            waits.append(time.perf_counter() - began)
        return statistics.median(waits) < sec / 2

    def close(self) -> None:
        """End the iteration, and with it a DataLoader's workers."""
        self._batches = iter(())

    def _next(self) -> Any:
        for batch in self._batches:
            return batch
        self._batches = iter(self._loader)
        self.epochs += 1
        for batch in self._batches:
            return batch
        raise OptionError(f"the {self.facts.kind} gives no batch (any more): give one that can be iterated again")

    def _count_of(self, batch: Any) -> int:
        return self._batch_size or num_samples(batch, self.facts.batch_size)
