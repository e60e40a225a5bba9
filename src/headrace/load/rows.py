"""From raw samples to rows of a batch: the work of one chunk, in a thread or in a worker process."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DamagedError, HeadraceError, TransformError
from headrace.load.decoded import CachedSteps, Came, MissingError
from headrace.load.fields import Specs, as_plain, checked_value
from headrace.load.marks import Lane, Where
from headrace.transform import Op, Sample, apply, sample_rng, seed_globals


@dataclass(frozen=True)
class Chain:
    """What happens to every sample of a stream."""

    ops: tuple[Op, ...]
    seed: int
    specs: Specs | None
    """None: every field is a list."""
    keep_samples: bool
    """Leave samples whole, for a `collate` of the user's."""
    seeds_globals: bool
    """Seed the global generators for each sample: right only where one thread of the process transforms."""
    cached: CachedSteps | None = None
    """The steps with a cache behind the first of them; None where nothing is kept."""


@dataclass(slots=True)
class Row:
    """One sample to be made, and its place in the batch."""

    number: int
    epoch: int
    position: int
    sample: Sample | None
    """None where only the cache of decoded samples can have it."""
    number_kept: int | None = None
    """The sample's number in that cache; None where it is not used."""

    @property
    def where(self) -> Where:
        """The sample's place in the order."""
        return self.epoch, self.position


@dataclass(slots=True)
class Made:
    """What became of one row: the values of its list fields; or None, where a filter turned it down; or an error."""

    key: str
    values: dict[str, Any] | None
    error: HeadraceError | None = None
    came: Came | None = None
    """How the decoded sample came about, where one may be kept."""
    is_missing: bool = False
    """Whether it could not be made without the stored bytes: once they are there it is to be asked for again."""


def damaged(key: str, shard_name: str, reason: str) -> Made:
    """What there is of a sample that cannot be had."""
    return Made(key, None, DamagedError(f"sample {key!r} in {shard_name}: {reason}"))


def condemned_row(key: str, why: str) -> Made:
    """What there is of a sample that no process survives."""
    return Made(key, None, TransformError(f"sample {key!r}: {why}: look at what the function does with it"))


def make_rows(chain: Chain, rows: Sequence[Row], arrays: dict[str, NDArray[Any]], lane: Lane) -> list[Made]:
    """Transform each row's sample; write tensor fields into `arrays`, (batch, ...) each; return the others.

    `lane` tells which sample it is at.
    """
    made = []
    for row in rows:
        lane.mark(row.epoch, row.position)
        made.append(_make_row(chain, row, arrays))
    lane.clear()
    return made


def _make_row(chain: Chain, row: Row, arrays: dict[str, NDArray[Any]]) -> Made:
    key, came = row.sample["__key__"] if row.sample is not None else "", None
    try:
        sample = row.sample
        if chain.cached is not None:
            sample, came = chain.cached.decoded(row.number_kept, sample)
            key = sample["__key__"]
        assert sample is not None  # only a cache has what was not read
        rows = {} if chain.keep_samples else {name: array[row.number, ...] for name, array in arrays.items()}
        sample = _transformed(chain, row, sample, came, rows)
        if sample is None:
            return Made(key, None, came=came)
        if chain.keep_samples:
            return Made(key, {name: as_plain(name, value) for name, value in sample.items()}, came=came)
        return Made(key, _place(chain.specs, sample, rows), came=came)
    except MissingError as err:
        return Made(key, None, came=err.came, is_missing=True)
    except HeadraceError as err:
        return Made(key, None, _about(key, err), came)
    except BaseException as err:  # also SystemExit: a function of the user's must not end the thread that waits for it
        error = TransformError(f"it ended in {type(err).__name__}: {' '.join(str(err).split())}")
        error.__cause__ = err
        return Made(key, None, _about(key, error), came)


def _transformed(
    chain: Chain, row: Row, sample: Sample, came: Came | None, rows: dict[str, NDArray[Any]]
) -> Sample | None:
    """The sample after the steps, of which the first are done where it `came` about; None if a filter refused it."""
    ops = chain.ops if chain.cached is None else chain.cached.rest
    if not ops:
        return sample
    if chain.seeds_globals:
        seed_globals(chain.seed, row.epoch, row.position)
    began = time.thread_time()
    made = apply(ops, sample, lambda: sample_rng(chain.seed, row.epoch, row.position), rows)
    if came is not None:
        came.rest_sec = time.thread_time() - began
    return made


def _place(specs: Specs | None, sample: Sample, rows: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Write what has a place in the batch's arrays, unless it lies there already; return the rest."""
    if specs is None:
        return {name: as_plain(name, value) for name, value in sample.items() if name != "__key__"}
    if len(sample) - 1 != len(specs) or not specs.keys() <= sample.keys():
        raise TransformError(
            f"it has the fields {sorted(map(str, sample.keys() - {'__key__'}))}, but samples of this stream have "
            f"{sorted(map(str, specs))}: give every sample the same fields, by .map, or drop it by .filter"
        )
    values: dict[str, Any] = {}
    for name, spec in specs.items():
        value = as_plain(name, sample[name])
        if spec is None:
            values[name] = value
        elif value is not rows[name]:
            rows[name][...] = checked_value(name, value, spec)
    return values


def _about(key: str, err: HeadraceError) -> HeadraceError:
    """The error with the sample's key in front, and the failing function's traceback as a note."""
    named = type(err)(f"sample {key!r}: {err}")
    if err.__cause__ is not None and not isinstance(err.__cause__, HeadraceError):
        named.add_note("".join(traceback.format_exception(err.__cause__)))
    return named


def contiguous(value: Any) -> NDArray[np.uint8]:
    """The bytes of an array or a byte string, without a copy where they lie in a row."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return np.frombuffer(value, np.uint8)
