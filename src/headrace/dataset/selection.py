"""Some of a dataset's samples, as pieces made of its pieces: listed one by one, or drawn by arithmetic.

A piece of a selection is some samples of one piece of the dataset, in storage order; so it is read as that is, by few
forward reads. A list that jumps back and forth, or names a sample twice, makes as many pieces as it has to.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from headrace.errors import OptionError
from headrace.formats.columns import I64
from headrace.order import derive_key, permutation

_WAYS = "whole numbers, a mask of booleans, or a function(sample) -> bool"


class Selection(ABC):
    """Which samples of which pieces. Small to pickle, safe to share by threads."""

    base: I64
    """Of which piece of the dataset each piece is a part."""
    samples: I64
    """How many samples each piece has, at least one."""

    @abstractmethod
    def numbers(self, k: int) -> I64:
        """The samples of piece k, numbered within its piece of the dataset, ascending."""

    @abstractmethod
    def digest(self) -> str:
        """A text that says which samples these are."""


@dataclass(frozen=True, eq=False)
class Listed(Selection):
    """Samples by their numbers."""

    base: I64
    samples: I64
    starts: I64
    """Piece k has the samples listed[starts[k]] to listed[starts[k + 1] - 1]."""
    listed: I64

    @classmethod
    def of(cls, numbers: I64, sample_starts: I64) -> Listed:
        """These samples, in this order, of a dataset whose pieces start at such numbers."""
        piece = np.searchsorted(sample_starts, numbers, side="right") - 1
        is_first = np.ones(len(numbers), bool)
        is_first[1:] = (piece[1:] != piece[:-1]) | (numbers[1:] <= numbers[:-1])
        starts = np.append(np.flatnonzero(is_first), len(numbers))
        within = numbers - sample_starts[piece]
        return cls(piece[is_first], np.diff(starts), starts, within)

    def numbers(self, k: int) -> I64:
        return self.listed[self.starts[k] : self.starts[k + 1]]

    def digest(self) -> str:
        digest = xxhash.xxh3_128()
        for column in (self.base, self.starts, self.listed):
            digest.update(column.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Drawn(Selection):
    """So many samples, of every piece its share: memory does not grow with their number."""

    base: I64
    samples: I64
    of: I64
    """How many samples the pieces of the dataset have, of which these are drawn."""
    seed: int

    @classmethod
    def from_pieces(cls, num_samples: int, sample_starts: I64, seed: int) -> Drawn:
        """`num_samples` of a dataset whose pieces start at such numbers; the same ones for the same seed."""
        total = int(sample_starts[-1])
        offset = derive_key(seed) % total
        # Shares are rounded so that all of them add up; in whole numbers of any size.
        upto = np.array([(start * num_samples + offset) // total for start in sample_starts.tolist()], np.int64)
        counts = np.diff(upto)
        base = np.flatnonzero(counts)
        return cls(base, counts[base], np.diff(sample_starts)[base], seed)

    def numbers(self, k: int) -> I64:
        chosen = permutation(derive_key(self.seed, int(self.base[k])), int(self.of[k]))
        return np.sort(chosen[: self.samples[k]])

    def digest(self) -> str:
        return f"{int(self.samples.sum())} drawn by {self.seed}"


@dataclass(frozen=True, eq=False)
class Narrowed(Selection):
    """A selection of a selection."""

    outer: Selection
    """Of the dataset."""
    inner: Selection
    """Of the outer one."""

    @property
    def base(self) -> I64:  # type: ignore[override]
        return self.outer.base[self.inner.base]

    @property
    def samples(self) -> I64:  # type: ignore[override]
        return self.inner.samples

    def numbers(self, k: int) -> I64:
        return self.outer.numbers(int(self.inner.base[k]))[self.inner.numbers(k)]

    def digest(self) -> str:
        return f"{self.outer.digest()}, of these {self.inner.digest()}"


def numbers_of(indices: Iterable[Any], num_samples: int) -> I64:
    """The numbers of samples that a user lists: whole numbers, from the end if negative, or a mask of booleans.

    Raises OptionError for what is neither, or names no sample of the dataset.
    """
    if not isinstance(indices, Iterable):
        raise OptionError(f"samples are selected by {_WAYS}: got {indices!r}")
    listed = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
    if listed.dtype == bool:
        if listed.shape != (num_samples,):
            raise OptionError(f"a mask has one boolean a sample: got {listed.shape} for {num_samples:,} samples")
        return np.flatnonzero(listed)
    if listed.ndim != 1 or (len(listed) and listed.dtype.kind not in "iu"):
        raise OptionError(f"samples are selected by {_WAYS}: got {listed.dtype} of shape {listed.shape}")
    outside = (listed < -num_samples) | (listed >= num_samples)
    if outside.any():
        found = listed[outside][0]
        raise OptionError(f"the numbers of {num_samples:,} samples end at {num_samples - 1:,}: got {found:,}")
    numbers = listed.astype(np.int64)
    return np.where(numbers < 0, numbers + num_samples, numbers)


def share_of(fraction: float, num_samples: int) -> int:
    """How many samples a share of them is, rounded, at least one. Raises OptionError for no share."""
    is_number = isinstance(fraction, int | float | np.integer | np.floating) and not isinstance(fraction, bool)
    if not is_number or not 0 < fraction <= 1:
        raise OptionError(f"a sample of a dataset is a fraction of it, above 0 and at most 1: got {fraction!r}")
    return max(1, round(float(fraction) * num_samples))


def whole_number(name: str, value: Any) -> int:
    """The value as an int. Raises OptionError for what is no whole number."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise OptionError(f"{name} must be a whole number: got {value!r}")
    return operator.index(value)
