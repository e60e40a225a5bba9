"""`measure`: the stages apart, the real feed, and what would make it faster, in rounds by turns.

Every measurement is a short window, and all of them take turns in three rounds: a machine that others use changes its
speed, and this way it changes for all of them. Processes of feeds are started anew in each round, and are not running
while others are measured.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from headrace.bench.feed import Feed, ready_stream
from headrace.bench.material import check_can_be_cold, make_cold
from headrace.bench.predict import HAND_OFF, model_of, predictions, stages_of
from headrace.bench.rates import Count, Rate
from headrace.bench.result import WORTH_TRYING, Bench, Remedy
from headrace.bench.stages import Probe, Steps, finished_samples, stage_probes
from headrace.bench.subject import Subject
from headrace.bench.variants import Variant, variants
from headrace.dataset import Dataset
from headrace.errors import HeadraceError, OptionError
from headrace.load import Stream
from headrace.load.options import check_flag, optional_number, optional_seconds, whole_number
from headrace.telemetry import progress
from headrace.transform import prepare_worker

NUM_ROUNDS = 3
LEAST_SECONDS = 1.0
_MATERIAL_SHARE, _READY_SHARE, _TRIAL_SHARE, _UTILIZATION_SHARE = 0.1, 0.05, 0.2, 0.1
_MIN_WINDOW_SEC, _MAX_WINDOW_SEC = 0.05, 2.0
_READY_SAMPLES = 64
_FEED = "feed"

_Key: TypeAlias = tuple[str, int]
"""What is measured, and with how many threads."""


def measure(
    stream: Stream,
    *,
    batch_size: int,
    threads: int | None = None,
    seconds: float = 20.0,
    step_sec: float | None = None,
    cold: bool = False,
    check: bool = True,
) -> Bench:
    """Measure the feed of a stream on this machine. OpenCV has one thread in this process from then on, as in a feed's.

    batch_size: samples of a batch.
    threads: that transform; None: one a usable processor.
    seconds: how long it is to take, about, at least 1. What cannot be shorter (the start of a process, one read, one
        batch, all in each of three rounds) may make it longer.
    step_sec: seconds that a trainer would take for a step: then `au` is measured.
    cold: empty the page cache of the dataset's shards before each repeat that reads them; else they are read from
        wherever they are.
    check: try the change that is predicted to help most.

    Raises OptionError for values that cannot work, and what the stream's own samples raise: DamagedError,
    TransformError.
    """
    began = time.perf_counter()
    batch_size, threads = whole_number("batch_size", batch_size, 1), optional_number("threads", threads, 1)
    check_seconds(seconds)
    step_sec = optional_seconds("step_sec", step_sec, 0.0)
    check_flag("cold", cold)
    check_flag("check", check)
    Feed(stream, batch_size, threads)  # what no loader can do is refused before anything is read
    if cold:
        check_can_be_cold(stream.dataset)
    prepare_worker()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        subject = Subject.of(stream, batch_size, threads, cold, Path(folder), seconds * _MATERIAL_SHARE)
        return _measured(subject, step_sec, seconds, began, check)


def check_seconds(seconds: float) -> None:
    """Raise OptionError for what is no time to measure in."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or not LEAST_SECONDS <= seconds < math.inf:
        raise OptionError(f"seconds must be a number of at least {LEAST_SECONDS:g}: got {seconds!r}")


def _measured(subject: Subject, step_sec: float | None, seconds: float, began: float, check: bool) -> Bench:
    feeds = {count: Feed(subject.stream, subject.batch_size, count) for count in subject.sweep()}
    first_batch_sec = _first_batch(feeds[subject.threads], subject)
    found, unknown = variants(subject)
    ready = _ready_feed(subject, seconds * _READY_SHARE)
    probes: dict[_Key, Probe] = {**stage_probes(subject), (HAND_OFF, 1): ready.rate}
    probes |= {(variant.name, 0): variant.probe for variant in found}
    probes |= {(_FEED, count): _feed_probe(feed, subject) for count, feed in feeds.items()}
    # Before a feed's window what it made ahead is taken, and before augmenting samples are decoded, for as long again.
    windows = len(probes) + sum(name in (_FEED, "augment", HAND_OFF) for name, _ in probes)
    trial_sec = seconds * _TRIAL_SHARE if check else 0.0
    left = seconds - trial_sec - (time.perf_counter() - began) - NUM_ROUNDS * len(feeds) * first_batch_sec
    try:
        rates = _by_turns(probes, left / (NUM_ROUNDS * windows))
    finally:
        ready.rest()
    by_threads = {count: rates[_FEED, count] for count in feeds}
    reached = by_threads[subject.threads]
    measured = {variant: rates[variant.name, 0] for variant in found}
    remedies = predictions(model_of(rates, subject), reached, subject, measured)
    return Bench(
        url=subject.stream.dataset.url,
        format=subject.stream.dataset.manifest.format if isinstance(subject.stream.dataset, Dataset) else "mixture",
        samples=len(subject.stream.dataset),
        batch_size=subject.batch_size,
        threads=subject.threads,
        cores=subject.cores,
        is_cold=subject.is_cold,
        reached=reached,
        stored_bytes_per_sample=subject.stored_bytes,
        first_batch_sec=first_batch_sec,
        stages=stages_of(rates, subject),
        by_threads=by_threads,
        remedies=_with_trial(remedies, subject, found, by_threads, trial_sec) if check else remedies,
        unknown=unknown,
        au=None if step_sec is None else _utilization(feeds[subject.threads], step_sec, seconds * _UTILIZATION_SHARE),
        step_sec=step_sec,
        sec=time.perf_counter() - began,
    )


def _by_turns(probes: Mapping[_Key, Probe], window_sec: float) -> dict[_Key, Rate]:
    """Each measured once a round; the first of a round is another each time."""
    window_sec = min(_MAX_WINDOW_SEC, max(_MIN_WINDOW_SEC, window_sec))
    counts: dict[_Key, list[Count]] = {key: [] for key in probes}
    keys = list(probes)
    with progress("measuring", NUM_ROUNDS * len(keys), "repeats") as advance:
        for number in range(NUM_ROUNDS):
            for key in keys[number:] + keys[:number]:
                counts[key].append(probes[key](window_sec))
                advance()
    return {key: Rate(tuple(repeats)) for key, repeats in counts.items()}


def _first_batch(feed: Feed, subject: Subject) -> float:
    if subject.is_cold:
        make_cold(subject.stream.dataset)
    try:
        return feed.start()
    finally:
        feed.rest()


def _feed_probe(feed: Feed, subject: Subject) -> Probe:
    def probe(window_sec: float) -> Count:
        if subject.is_cold:
            make_cold(subject.stream.dataset)
        try:
            return feed.rate(window_sec)
        finally:
            feed.rest()

    return probe


def _ready_feed(subject: Subject, limit_sec: float) -> Feed:
    """A feed of samples that are finished already: what is left of it is the hand-off."""
    steps = Steps(subject.stream.ops, subject.stream.seed)
    finished = finished_samples(steps, subject.raw, _READY_SAMPLES, limit_sec)
    stream = ready_stream(subject.stream, finished, subject.folder / "ready")
    return Feed(stream, subject.batch_size, subject.threads)


def _with_trial(
    remedies: Sequence[Remedy],
    subject: Subject,
    found: Sequence[Variant],
    by_threads: Mapping[int, Rate],
    limit_sec: float,
) -> list[Remedy]:
    """The remedies, of which the best that can be tried has been."""
    tried = list(remedies)
    for number, remedy in enumerate(remedies):
        if remedy.gain < WORTH_TRYING:
            break
        if remedy.threads is not None and remedy.threads in by_threads:  # the rounds have tried it already
            tried[number] = replace(remedy, tried=by_threads[remedy.threads])
            break
        try:
            tried[number] = replace(remedy, tried=_trial(remedy, subject, found, limit_sec))
            break
        except HeadraceError as err:
            tried[number] = replace(remedy, why_not=str(err))
    return tried


def _trial(remedy: Remedy, subject: Subject, found: Sequence[Variant], limit_sec: float) -> Rate:
    """Three repeats of the feed with the change, after one that is not counted."""
    variant = next((one for one in found if one.name == remedy.name), None)
    if variant is None:
        feed = Feed(subject.stream, subject.batch_size, remedy.threads or subject.threads, remedy.processes or 1)
    else:
        feed = variant.trial(int(remedy.predicted * limit_sec))
    window_sec = min(_MAX_WINDOW_SEC, max(_MIN_WINDOW_SEC, limit_sec / (2 * NUM_ROUNDS)))
    try:
        with progress(f"trying {remedy.name}", NUM_ROUNDS, "repeats") as advance:
            counts = []
            for _ in range(NUM_ROUNDS):
                counts.append(feed.rate(window_sec))
                advance()
    finally:
        feed.rest()
    return Rate(tuple(counts))


def _utilization(feed: Feed, step_sec: float, limit_sec: float) -> float:
    try:
        return feed.utilization(step_sec, limit_sec)
    finally:
        feed.rest()
