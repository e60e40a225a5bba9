"""Many steps to few points, with nothing extreme lost.

A screen shows some hundred points; a run has up to millions of steps. Steps are put into equal buckets, and of every
bucket the mean, the smallest and the largest value are kept: the mean is drawn as a line, the extremes as a band, so a
single bad step out of a million stays visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Buckets:
    """Runs of neighbouring steps, equal but for the last: bucket k holds the rows edges[k] to edges[k + 1] - 1."""

    edges: NDArray[np.intp]

    @classmethod
    def of(cls, num_rows: int, most: int) -> Buckets:
        """At most `most` buckets of at least one row each."""
        size = max(1, -(-num_rows // most))
        return cls(np.append(np.arange(0, max(1, num_rows), size), num_rows).astype(np.intp))

    @property
    def size(self) -> int:
        """Rows in the largest bucket."""
        return int(np.diff(self.edges).max(initial=0))

    def sum(self, values: Array) -> Array:
        """The sum in each bucket, over what is known."""
        return self._reduce(np.add, np.nan_to_num(values, nan=0.0))

    def mean(self, values: Array) -> Array:
        """The mean in each bucket, over what is known; NaN where nothing is."""
        known = self._reduce(np.add, np.isfinite(values).astype(np.float64))
        return divide(self.sum(values), known)

    def low(self, values: Array) -> Array:
        """The smallest value in each bucket; NaN where nothing is known."""
        return self._reduce(np.fmin, values)

    def high(self, values: Array) -> Array:
        """The largest value in each bucket; NaN where nothing is known."""
        return self._reduce(np.fmax, values)

    def last(self, values: Array) -> Array:
        """The last value in each bucket."""
        return np.asarray(values[self.edges[1:] - 1])

    def _reduce(self, ufunc: Any, values: Array) -> Array:
        return np.asarray(ufunc.reduceat(values, self.edges[:-1]))


def divide(numerator: Array, denominator: Array) -> Array:
    """The quotient; NaN where the denominator is 0."""
    return np.asarray(np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator != 0))


def smooth(values: Array, width: int) -> Array:
    """The centred moving mean over `width` neighbours, over what is known; NaN where the value itself is unknown."""
    if width <= 1 or len(values) < 3:
        return values
    known = np.isfinite(values)
    kernel = np.ones(min(width | 1, len(values)))
    sums = np.convolve(np.where(known, values, 0), kernel, "same")[: len(values)]
    counts = np.convolve(known.astype(np.float64), kernel, "same")[: len(values)]
    return np.where(known, divide(sums, counts), np.nan)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that cover low to high, inside it."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return [float(k * step) for k in np.arange(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, for a logarithmic axis."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(ticks) >= 3:
            return ticks
    return ticks
