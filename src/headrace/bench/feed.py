"""The real feed, measured from the trainer's side: a loader process, its batches, and how fast they come."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headrace.bench.rates import Count
from headrace.dataset import open as open_dataset
from headrace.load import Loader, Stream
from headrace.load.fields import stored_fields
from headrace.transform import Fields, Sample, output_fields

_READY_TOKENS = 1 << 16
_LEAST_SEC = 0.25
"""A process that has just started, and batches that come several at once, make a shorter window say little."""


class Feed:
    """A loader that is asked for batches now and then. Its process is ended in between: one that reads ahead while
    others are measured would disturb them, and what it has read ahead would flatter it afterwards."""

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        threads: int | None,
        processes: int = 1,
        cache_decoded: Literal["ram"] | None = None,
    ) -> None:
        """Nothing is kept decoded unless that is to be measured: it would flatter what is measured later. Raises
        OptionError for what no loader can do."""
        self._loader = Loader(
            replace(stream, epochs=None),
            batch_size=batch_size,
            threads=threads,
            processes=processes,
            cache_decoded=cache_decoded,
            rank=0,
            world_size=1,
        )
        _ = self._loader.steps_per_epoch  # asks for at least one full batch
        self._batch_size = batch_size
        self._batches: Iterator[Any] = iter(self._loader)
        self._runs = False

    def start(self) -> float:
        """Have it run, up to its first batch; returns how many seconds that took, 0 where it runs already."""
        began = time.perf_counter()
        if self._runs:
            return 0.0
        next(self._batches)
        self._runs = True
        return time.perf_counter() - began

    def take(self) -> Any:
        """The next batch."""
        self.start()
        return next(self._batches)

    def rate(self, window_sec: float) -> Count:
        """How fast batches come. What was made ahead is taken first, for as long as the window at most."""
        self.start()
        window_sec = max(_LEAST_SEC, window_sec)
        deadline = time.perf_counter() + window_sec
        next(self._batches)
        while time.perf_counter() < deadline:
            next(self._batches)
        return self._count(window_sec)

    def pass_over(self, num_samples: int) -> None:
        """Take so many samples, unmeasured."""
        self.start()
        for _ in range(-(-num_samples // self._batch_size)):
            next(self._batches)

    def utilization(self, step_sec: float, window_sec: float) -> float:
        """The share of the time that a trainer which takes `step_sec` for a step would spend in its steps, 0 to 1.

        Without the first step, as MLPerf Storage counts; steps are slept.
        """
        self.start()
        began, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - began < window_sec:
            time.sleep(step_sec)
            steps += 1
            next(self._batches)
        return min(1.0, steps * step_sec / (time.perf_counter() - began))

    def rest(self) -> None:
        """End the process; it goes on where it was when it is asked again."""
        self._loader.close()
        self._runs = False

    def _count(self, window_sec: float) -> Count:
        began, bytes_before, batches = time.perf_counter(), self._handed_over(), 0
        while not batches or time.perf_counter() - began < window_sec:
            next(self._batches)
            batches += 1
        sec = time.perf_counter() - began
        return Count(batches * self._batch_size, self._handed_over() - bytes_before, sec)

    def _handed_over(self) -> int:
        num_bytes: int = self._loader.meters()["stages"]["hand-off"]["bytes"]
        return num_bytes


@dataclass(frozen=True)
class Ready:
    """A step that takes no work: it gives samples that are finished already, in place of a token that says which."""

    samples: Sequence[Sample]
    fields: Fields
    """What the real stream knows of its fields."""

    takes_rng = False

    def __call__(self, sample: Sample) -> Sample:
        return self.samples[int(sample["tokens"][0]) % len(self.samples)]

    def output_fields(self, fields: Fields) -> Fields:
        """As the real stream's."""
        return self.fields


def ready_stream(stream: Stream, finished: Sequence[Sample], folder: Path) -> Stream:
    """A stream of finished samples, out of a dataset of tokens in `folder` that costs next to nothing to read.

    Batches are of the fields that `stream` gives, in the same layout.
    """
    folder.mkdir()
    np.arange(_READY_TOKENS).astype(np.uint16).tofile(folder / "ready.uint16.bin")
    fields = output_fields(stream.ops, stored_fields(stream.dataset.schema))
    samples = [{name: _sendable(value) for name, value in sample.items()} for sample in finished]
    return Stream(open_dataset(folder).windows(1)).map(Ready(samples, fields))


def _sendable(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value
