"""Changes to where or how the data lies that may make a feed faster, in small: in a temporary folder, or in memory.

    cache        what a store sent, read from a local disk the next time
    decoded      what decoding made of the samples, taken from memory the next time
    resize       images made smaller once, when packing
    format       samples that are read and checked by themselves, instead of unpacked with their whole shard

Of each the stage that it changes can be measured, for a prediction, and a feed can be made, to try it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from headrace.bench.feed import Feed
from headrace.bench.material import Reads
from headrace.bench.rates import Cycle, race
from headrace.bench.stages import Probe, Steps, sample_bytes, steps_probe, verify_probe
from headrace.bench.subject import Subject
from headrace.dataset import Dataset
from headrace.dataset import open as open_dataset
from headrace.errors import HeadraceError, OptionError
from headrace.formats import sample_checksum
from headrace.load import Stream
from headrace.load.decoded.control import LEAST_DECODE_SEC, MEMORY_SHARE
from headrace.load.decoded.encoding import decode, encode
from headrace.load.host import available_memory_bytes
from headrace.load.job import num_readers
from headrace.packing import pack
from headrace.packing.steps.images import ShrinkImages
from headrace.transform import Decode, Op, Sample, ScaledDecode, apply, lasting_steps, may_write_arrays
from headrace.transform.decode import field_kind

_MAX_SHRUNK = 64
_QUALITY = 90
DECODED = "cache_decoded=ram"
"""The name of the change that a loader can make by itself."""
_TRIAL_BATCHES = 4
_USUAL_SHORT = 256
_KEPT_TYPED = {"tar": "tar", "tfrecord": "tfrecord", "mds": "mds"}


@dataclass(frozen=True, eq=False)
class Variant:
    """A change to the data that is at hand in small: what to measure of it, and how to try it."""

    name: str
    how: str
    stage: Literal["storage", "verify", "transform"]
    """What it changes; "transform" is all of the steps."""
    probe: Probe
    """Of that."""
    bytes_ratio: float
    """Stored bytes of a sample that are read after, over those before."""
    trial: Callable[[int], Feed]
    """Makes the feed to measure; `trial(n)` prepares n samples for it, where they are not at hand yet."""


class Unknown(NamedTuple):
    """A change of which nothing can be predicted, and why."""

    name: str
    reason: str


def variants(subject: Subject) -> tuple[list[Variant], list[Unknown]]:
    """Those that make sense here, and those that would but cannot be measured."""
    found: list[Variant] = []
    unknown: list[Unknown] = []
    if not isinstance(subject.stream.dataset, Dataset):
        return found, unknown  # what is mixed lies in several places
    for name, make in (("cache", _cache), (DECODED, _decoded), ("resize", _resize), ("format", _format)):
        try:
            variant = make(subject, subject.stream.dataset)
        except HeadraceError as err:
            unknown.append(Unknown(name, str(err)))
            continue
        if variant is not None:
            found.append(variant)
    return found, unknown


def _cache(subject: Subject, dataset: Dataset) -> Variant | None:
    if not dataset.is_remote or dataset.is_cached:
        return None
    cached = dataset.with_cache(subject.folder / "cache")
    reads = Reads(cached, subject.stream)
    again = reads.read_again(subject.held)
    for _ in subject.held:
        again()  # fills it
    threads = num_readers(subject.threads, True)

    def trial(num_samples: int) -> Feed:
        some = cached.select(np.arange(min(len(cached), max(num_samples, 2 * subject.batch_size))))
        feed = Feed(replace(subject.stream, dataset=some), subject.batch_size, subject.threads)
        feed.pass_over(len(some))
        return feed

    how = "headrace.open(url, cache=FOLDER): from the second epoch on, if the dataset fits the folder's disk"
    return Variant("cache", how, "storage", lambda sec: race(again, threads, sec), 1.0, trial)


def _decoded(subject: Subject, dataset: Dataset) -> Variant | None:
    ops = subject.stream.ops
    first = lasting_steps(ops)
    rest, copies = ops[len(first) :], may_write_arrays(ops[len(first) :])
    began = time.thread_time()
    made = [apply(first, sample, _no_randomness) for sample in subject.raw[:_MAX_SHRUNK]]
    sec = (time.thread_time() - began) / len(made)
    kept = [encode(sample) for sample in made if sample is not None]
    blobs = [blob.data for blob in kept if blob is not None]
    if not first or sec < LEAST_DECODE_SEC or len(blobs) < len(kept):
        return None
    _check_fits(sum(map(len, blobs)) / len(blobs) * len(dataset))
    cycle, steps = Cycle(len(blobs)), Steps(rest, subject.stream.seed)

    def turn() -> tuple[int, int]:
        blob = blobs[cycle.next()]
        sample_checksum(blob)
        steps(decode(blob, copies=copies))
        return 1, len(blob)

    def trial(num_samples: int) -> Feed:
        some = dataset.select(np.arange(min(len(dataset), _TRIAL_BATCHES * subject.batch_size)))
        feed = Feed(replace(subject.stream, dataset=some), subject.batch_size, subject.threads, cache_decoded="ram")
        feed.pass_over(len(some))
        return feed

    how = 'headrace.Loader(..., cache_decoded="ram"): from the second epoch on'
    return Variant(DECODED, how, "transform", lambda sec: race(turn, subject.threads, sec), 0.0, trial)


def _check_fits(num_bytes: float) -> None:
    most = available_memory_bytes() // MEMORY_SHARE
    if num_bytes > most:
        raise OptionError(
            f"all samples decoded take {num_bytes / 2**30:,.3g} GiB, more than a quarter of the free memory, "
            f"{most / 2**30:,.3g} GiB; cache_decoded=FOLDER keeps them on a disk"
        )


def _no_randomness() -> np.random.Generator:
    raise AssertionError("steps that are done once take no rng")


def _resize(subject: Subject, dataset: Dataset) -> Variant | None:
    decode = next((op for op in _single_steps(subject.stream) if isinstance(op, Decode)), None)
    names = () if decode is None else [n for n in dataset.schema if n in decode.images or field_kind(n) == "image"]
    if decode is None or not names:
        return None
    short = _short_side(subject.stream)
    shrink = ShrinkImages(short, None, _QUALITY, decode.images)
    before = subject.raw[:_MAX_SHRUNK]
    after = [shrink(sample) for sample in before]
    ratio = sum(map(sample_bytes, after)) / sum(map(sample_bytes, before))
    if all(a[n] == b[n] for a, b in zip(after, before, strict=True) for n in names):
        return None  # they are that small already
    probe = steps_probe(Steps(subject.stream.ops, subject.stream.seed), after, subject.threads)

    def trial(num_samples: int) -> Feed:
        target = subject.folder / "resized"
        format_ = _target_format(dataset)
        pack(_packable(subject), target, format=format_, resize_short=short, quality=_QUALITY, shuffle=False)
        return _feed_of(subject, target)

    how = f"headrace pack --resize-short {short}: images of {short} pixels' short side, JPEGs at quality {_QUALITY}"
    return Variant(f"resize-short={short}", how, "transform", probe, ratio, trial)


def _format(subject: Subject, dataset: Dataset) -> Variant | None:
    if not dataset.pieces.is_whole.any():
        return None
    format_, target = _target_format(dataset), subject.folder / "repacked"
    pack(_packable(subject), target, format=format_, shuffle=False)
    packed = open_dataset(target)
    held = Reads(packed, replace(subject.stream, dataset=packed, block_size=None)).hold(len(packed), 1.0)
    probe = verify_probe(held, num_readers(subject.threads, dataset.is_remote))
    bytes_per_sample = sum(len(one.data) for one in held) / sum(one.num_samples for one in held)

    def trial(num_samples: int) -> Feed:
        return _feed_of(subject, target)

    how = f"headrace pack --format {format_}: samples that are read and checked one by one"
    return Variant(f"format={format_}", how, "verify", probe, bytes_per_sample / subject.stored_bytes, trial)


def _target_format(dataset: Dataset) -> str:
    """One whose samples are read by ranges: the dataset's own, if it is one; else MDS, which keeps every type."""
    return _KEPT_TYPED.get(dataset.manifest.format, "mds")


def _packable(subject: Subject) -> Iterator[Sample]:
    return ({n: bytes(v) if isinstance(v, memoryview) else v for n, v in one.items()} for one in subject.raw)


def _feed_of(subject: Subject, target: Path) -> Feed:
    packed = open_dataset(target)
    if len(packed) < subject.batch_size:
        raise OptionError(f"{len(packed):,} samples could be had for it in the time, fewer than a batch")
    stream = replace(subject.stream, dataset=packed, block_size=None)
    return Feed(stream, subject.batch_size, subject.threads)


def _single_steps(stream: Stream) -> Iterator[Op]:
    for op in stream.ops:
        yield from (op.decode, op.step) if isinstance(op, ScaledDecode) else (op,)


def _short_side(stream: Stream) -> int:
    """As much larger than what the steps cut out as 256 is than 224; 256 where they do not say."""
    sizes: list[int] = []
    for op in _single_steps(stream):
        size = getattr(op, "size", None)
        if isinstance(size, int):
            sizes.append(size)
        elif isinstance(size, tuple) and all(isinstance(side, int) for side in size):
            sizes.append(max(size))
    return round(max(sizes) * 8 / 7) if sizes else _USUAL_SHORT
