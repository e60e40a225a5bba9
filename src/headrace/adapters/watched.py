"""Loaders that are watched: how long their own `next` takes, and what comes out of it.

The trap is the wrapper. What Accelerate, Fabric and Lightning iterate for a loop gets a batch *and* moves it to the
device, synchronises ranks or fetches one ahead; its `next` says nothing of the loader. So the loader inside is looked
for, and timed there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from headrace.adapters.in_place import timed_loader
from headrace.load.foreign import LoaderFacts, loader_facts, num_bytes, num_samples, raw_loader

if TYPE_CHECKING:
    from headrace.adapters.monitor import Monitor

B = TypeVar("B")

_LOOK_EVERY_SEC = 5.0
"""Counting the bytes of a batch may take longer than all else that is done for it, so some batches stand for all."""


@dataclass(frozen=True, slots=True)
class LoaderTally:
    """What has come out of a loader so far, on this rank."""

    facts: LoaderFacts
    batches: int
    samples: int
    """As far as batches show how many they have."""
    wait_sec: float
    """In the loader's own `next`, all batches together."""
    batches_looked_at: int
    """Batches whose bytes were counted: the first, and one every five seconds."""
    bytes_looked_at: int

    @property
    def bytes_per_batch(self) -> float | None:
        """Mean over the batches that were looked at; None before the first."""
        return self.bytes_looked_at / self.batches_looked_at if self.batches_looked_at else None

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values, as the run's `loader` events have it."""
        found = asdict(self)
        return {**found.pop("facts"), **found, "bytes_per_batch": self.bytes_per_batch}


class Counter:
    """Counts what comes out of a loader."""

    def __init__(self, loader: Any) -> None:
        self._facts = loader_facts(loader)
        self._batches = self._samples = self._looked_at = self._bytes = 0
        self.wait_sec = 0.0
        self._looked = float("-inf")

    def add(self, batch: Any) -> int:
        """Count a batch; returns how many samples it has, 0 where it does not show."""
        found = num_samples(batch, self._facts.batch_size)
        self._batches += 1
        self._samples += found
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_SEC:
            self._looked = now
            self._looked_at += 1
            self._bytes += num_bytes(batch)
        return found

    def tally(self) -> LoaderTally:
        """All so far."""
        return LoaderTally(self._facts, self._batches, self._samples, self.wait_sec, self._looked_at, self._bytes)


class Watched(Generic[B]):
    """A loader, watched: iterating it is all that changes; other attributes are the loader's own."""

    def __init__(self, monitor: Monitor, loader: Iterable[B]) -> None:
        self._monitor = monitor
        self._watched = loader

    def __iter__(self) -> Iterator[B]:
        self._monitor.iterated()
        raw = raw_loader(self._watched)
        is_wrapper = raw is not self._watched
        with timed_loader(raw, self._monitor.waited) if is_wrapper else nullcontext():
            began = time.perf_counter()
            batches = iter(self._watched)  # where some loaders start their processes
            while True:
                waited = self._monitor.counter.wait_sec
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                sec = time.perf_counter() - began
                if is_wrapper:
                    self._monitor.parts.copied(sec - (self._monitor.counter.wait_sec - waited))
                else:
                    self._monitor.waited(sec)
                self._monitor.took(batch)
                yield batch
                began = time.perf_counter()

    def __len__(self) -> int:
        return len(self._watched)  # type: ignore[arg-type]  # TypeError where the loader has none

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watched, name)
