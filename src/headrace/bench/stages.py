"""Each stage of the feed by itself, on what lies in memory: its ceiling, which no feed made of it can pass.

storage   the stream's reads, by as many threads as the feed's, and nothing else
verify    checksums over bytes in memory; of pieces that are unpacked as a whole (compressed tars, row groups of
          Parquet) the unpacking too
decode    the steps up to the decoding, over raw samples in memory
augment   the steps behind it, over decoded samples
(hand-off is measured in `feed`, through the real loader process)

Bytes count what a stage takes in.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from headrace.bench.material import Held, make_cold
from headrace.bench.rates import Count, Cycle, race
from headrace.bench.subject import Subject
from headrace.errors import OptionError
from headrace.transform import Decode, Op, Sample, ScaledDecode, apply, sample_rng

Probe: TypeAlias = Callable[[float], Count]
"""Measures for about so many seconds."""

_MAX_DECODED_BYTES = 128 << 20


def split_ops(ops: Sequence[Op]) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """The steps up to the last decoding, with the crop that is one step with it, and those behind it."""
    at = max((number for number, op in enumerate(ops, 1) if isinstance(op, Decode | ScaledDecode)), default=0)
    return tuple(ops[:at]), tuple(ops[at:])


class Steps:
    """Some steps of the stream over samples that are given. Thread-safe."""

    def __init__(self, ops: Sequence[Op], seed: int) -> None:
        self._ops, self._seed = tuple(ops), seed
        self._positions = itertools.count()

    def __call__(self, sample: Sample) -> Sample | None:
        """What they make of it; None where a filter turns it down. Raises TransformError, which names the step."""
        position = next(self._positions)
        return apply(self._ops, sample, lambda: sample_rng(self._seed, 0, position))

    def __bool__(self) -> bool:
        return bool(self._ops)


def stage_probes(subject: Subject) -> dict[tuple[str, int], Probe]:
    """By stage and number of threads: those of the feed, and for steps also one, and several to see how they scale."""
    readers, seed = subject.readers, subject.stream.seed
    decode, augment = (Steps(ops, seed) for ops in split_ops(subject.stream.ops))
    probes: dict[tuple[str, int], Probe] = {
        ("storage", readers): storage_probe(subject),
        ("verify", readers): verify_probe(subject.held, readers),
    }
    for threads in sorted({1, subject.threads, subject.several}):
        if decode:
            probes["decode", threads] = steps_probe(decode, subject.raw, threads)
        if augment:
            probes["augment", threads] = augment_probe(decode, augment, subject.raw, threads)
    return probes


def storage_probe(subject: Subject) -> Probe:
    """Reads, from wherever the shards are or, if asked for, from the disk."""

    def probe(window_sec: float) -> Count:
        if subject.is_cold:
            make_cold(subject.stream.dataset)
        return race(subject.reads.turn, subject.readers, window_sec)

    return probe


def verify_probe(held: Sequence[Held], num_threads: int) -> Probe:
    """Checks what lies in memory."""
    cycle = Cycle(len(held))

    def turn() -> tuple[int, int]:
        one = held[cycle.next()]
        one.index.open(one.read.first, one.read.last, one.data)
        return one.num_samples, len(one.data)

    return lambda window_sec: race(turn, num_threads, window_sec)


def steps_probe(steps: Steps, samples: Sequence[Sample], num_threads: int) -> Probe:
    """Runs steps on samples that they leave as they are, as decoding does."""
    cycle = Cycle(len(samples))
    sizes = [sample_bytes(sample) for sample in samples]

    def turn() -> tuple[int, int]:
        number = cycle.next()
        steps(samples[number])
        return 1, sizes[number]

    return lambda window_sec: race(turn, num_threads, window_sec)


def augment_probe(decode: Steps, augment: Steps, samples: Sequence[Sample], num_threads: int) -> Probe:
    """Runs the later steps on samples that were decoded before, each of them once: steps may change arrays in place."""
    decode_sec, augment_sec, decoded_bytes = _costs(decode, augment, samples)
    cycle = Cycle(len(samples))

    def probe(window_sec: float) -> Count:
        # Making them takes no longer than the window, either.
        most = min(num_threads * window_sec / augment_sec, window_sec / decode_sec, _MAX_DECODED_BYTES / decoded_bytes)
        made = (decode(samples[cycle.next()]) for _ in range(max(num_threads, int(most))))
        waiting = deque(sample for sample in made if sample is not None)
        if not waiting:
            raise _all_filtered(len(samples))

        def turn() -> tuple[int, int] | None:
            try:
                sample = waiting.popleft()
            except IndexError:
                return None
            num_bytes = sample_bytes(sample)
            augment(sample)
            return 1, num_bytes

        return race(turn, num_threads, window_sec)

    return probe


def finished_samples(steps: Steps, samples: Sequence[Sample], most: int, limit_sec: float) -> list[Sample]:
    """Samples as they go into batches: at most so many, and no more than the time allows; one at least.

    Raises OptionError where the stream's filters turn all of them down.
    """
    deadline = time.monotonic() + limit_sec
    finished: list[Sample] = []
    for sample in samples:
        made = steps(sample)
        if made is not None:
            finished.append(made)
        if finished and (len(finished) == most or time.monotonic() >= deadline):
            break
    if not finished:
        raise _all_filtered(len(samples))
    return finished


def sample_bytes(sample: Sample) -> int:
    """Bytes of a sample's arrays and byte strings; 8 for a number, the length of a text."""
    return sum(_value_bytes(value) for name, value in sample.items() if name != "__key__")


def _value_bytes(value: Any) -> int:
    if isinstance(value, memoryview | np.ndarray):
        return value.nbytes
    if isinstance(value, bytes | bytearray | str):
        return len(value)
    return int(value.nbytes) if hasattr(value, "nbytes") else 8


def _costs(decode: Steps, augment: Steps, samples: Sequence[Sample]) -> tuple[float, float, int]:
    """What decoding and augmenting take of the first sample that passes, in seconds, and its decoded bytes."""
    for sample in samples:
        began = time.perf_counter()
        made = decode(sample)
        decoded = time.perf_counter()
        if made is not None:
            num_bytes = sample_bytes(made)
            begin_augment = time.perf_counter()
            augment(made)
            return max(1e-6, decoded - began), max(1e-6, time.perf_counter() - begin_augment), max(1, num_bytes)
    raise _all_filtered(len(samples))


def _all_filtered(num_samples: int) -> OptionError:
    return OptionError(
        f"a feed is measured by the samples that pass its filters: none of the {num_samples:,} that were tried does"
    )
