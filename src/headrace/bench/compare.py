"""`compare_feed`: another library's loader at full rate, beside headrace's feed of the same data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.bench.comparison import Comparison, Step
from headrace.bench.feed import Feed
from headrace.bench.foreign_feed import ForeignFeed
from headrace.bench.measure import NUM_ROUNDS, check_seconds
from headrace.bench.rates import Count, Rate
from headrace.bench.same_data import DatasetLike, stream_of
from headrace.errors import HeadraceError, OptionError
from headrace.load import Stream
from headrace.load.foreign import num_bytes, num_samples
from headrace.load.options import optional_number, optional_seconds, whole_number
from headrace.telemetry import progress

_SAME_BYTES = 0.05
"""By how much the bytes of a sample may differ on both sides: types of labels, say."""


def compare_feed(
    loader: Iterable[Any],
    *,
    dataset: DatasetLike | None = None,
    run: str | Path | None = None,
    step_sec: float | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    processes: int = 1,
    seconds: float = 5.0,
) -> Comparison:
    """How fast a loader is, how fast headrace's feed of the same data, and what a trainer would make of each.

    Both are asked for batches in turns, three times each, while nothing else computes. The loader's iterator is one of
    its own, so a training loop's is not disturbed; its samples are read.

    Args:
        loader: any iterable of batches that can be iterated again: a DataLoader, WebDataset's loader, a `hr.Loader`.
        dataset: what the data is: a path, a URL or a Dataset that headrace opens, decoded; or a Stream, with the steps
            that the loader's samples go through. None: it is looked for in the loader. Found are streams, torchvision's
            ImageFolder with its transform, tar shards of WebDataset with its functions of single samples, and rows of a
            Hugging Face dataset without a transform, of which some are packed in a temporary folder.
        run: the folder of a run that was recorded: its mean step says what is trained.
        step_sec: seconds that a step on one batch computes, in place of a run.
        batch_size: samples of a batch, where batches do not show it.
        threads, processes: of headrace's feed, as of `headrace.Loader`.
        seconds: how long it is to take, about, at least 1. Two starts of either side come on top.

    Where the same data cannot be had, or its samples come out with other bytes, the feed's rate is None and `unknown`
    says why. Raises OptionError for values that cannot work, and what the loader raises.
    """
    check_seconds(seconds)
    batch_size = optional_number("batch_size", batch_size, 1)
    threads, processes = optional_number("threads", threads, 1), whole_number("processes", processes, 1)
    step_sec = optional_seconds("step_sec", step_sec, 0.0)
    if run is not None and step_sec is not None:
        raise OptionError("run and step_sec both say how long a step takes: give one of them")
    step = None if run is None else Step.of_run(run)
    other = ForeignFeed(loader, batch_size)
    if step_sec is not None:
        step = Step(other.batch_size, step_sec, step_sec)
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-compare-") as scratch:
            found = _found(loader, dataset, Path(scratch))
            feed = feed_of(found, other, threads, processes, may_be_unknown=dataset is None)
            return _compared(other, found, feed, step, seconds)
    finally:
        other.close()


@dataclass
class Found:
    """A stream of the same data, or why there is none."""

    stream: Stream | None = None
    unknown: str = ""
    notes: tuple[str, ...] = ()
    bytes_per_sample: float | None = None


def _found(loader: Any, dataset: DatasetLike | None, scratch: Path) -> Found:
    try:
        stream, note = stream_of(loader, dataset, scratch)
    except HeadraceError as err:
        if dataset is not None:
            raise
        return Found(unknown=str(err))
    return Found(stream, notes=(note,) if note else ())


def feed_of(found: Found, other: ForeignFeed, threads: int | None, processes: int, may_be_unknown: bool) -> Feed | None:
    """The feed, if its samples come out as large as the loader's; `found` is told what is known of it."""
    if found.stream is None:
        return None
    try:
        feed = Feed(found.stream, other.batch_size, threads, processes)
        batch = feed.take()
    except HeadraceError as err:
        if not may_be_unknown:
            raise
        found.unknown = f"its steps cannot be done by headrace's feed: {err}"
        return None
    feed.rest()
    found.bytes_per_sample = num_bytes(batch) / max(1, num_samples(batch))
    if abs(found.bytes_per_sample - other.bytes_per_sample) > _SAME_BYTES * other.bytes_per_sample:
        differs = (
            f"a sample has {found.bytes_per_sample:,.0f} bytes in headrace's feed and {other.bytes_per_sample:,.0f} in "
            "the loader's batches"
        )
        if may_be_unknown:
            found.unknown = f"{differs}: give dataset=, a Stream with the same steps"
            return None
        found.notes += (f"Not the same work: {differs}.",)
    return feed


def _compared(other: ForeignFeed, found: Found, feed: Feed | None, step: Step | None, seconds: float) -> Comparison:
    sides = 1 if feed is None else 2
    window_sec = seconds / (NUM_ROUNDS * sides * 2)  # what was made ahead is taken for as long as is counted
    theirs: list[Count] = []
    ours: list[Count] = []
    with progress("comparing", NUM_ROUNDS, "rounds") as advance:
        for _ in range(NUM_ROUNDS):
            theirs.append(other.rate(window_sec))
            if feed is not None:
                ours.append(_rate(feed, window_sec))
            advance()
    rate = Rate(tuple(theirs))
    return Comparison(
        loader=other.facts,
        batch_size=other.batch_size,
        loader_rate=rate,
        loader_first_batch_sec=other.first_batch_sec,
        overlaps=other.overlaps(rate.samples_per_sec),
        loader_bytes_per_sample=other.bytes_per_sample,
        feed_rate=Rate(tuple(ours)) if ours else None,
        feed_bytes_per_sample=found.bytes_per_sample,
        unknown=found.unknown,
        notes=found.notes,
        step=step,
    )


def _rate(feed: Feed, window_sec: float) -> Count:
    try:
        return feed.rate(window_sec)
    finally:
        feed.rest()
