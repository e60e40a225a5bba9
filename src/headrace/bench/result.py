"""What a bench found, and the sentence that says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.bench.rates import Rate
from headrace.bench.variants import Unknown
from headrace.report import formatting as fmt

WORTH_TRYING = 1.05
"""A remedy that is predicted to give less than 5 % more is not tried: repeats differ by as much."""


@dataclass(frozen=True)
class Stage:
    """One stage by itself."""

    name: str
    threads: int
    """How many work in it in the feed, and worked while it was measured."""
    rate: Rate
    alone: Rate | None = None
    """Of one thread, where both were measured."""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        alone = None if self.alone is None else self.alone.to_json()
        return {"threads": self.threads, **self.rate.to_json(), "one_thread": alone}


@dataclass(frozen=True)
class Remedy:
    """One change, what it is predicted to give, and what a trial of it gave. Rates are samples/s."""

    name: str
    how: str
    """What to do, in the words of the library."""
    predicted: float
    gain: float
    """Predicted over what was reached: 1.3 is 30 % more."""
    threads: int | None = None
    processes: int | None = None
    """What it changes of the loader, where it does."""
    tried: Rate | None = None
    why_not: str = ""
    """What kept a trial from being made."""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "name": self.name,
            "how": self.how,
            "predicted_samples_per_sec": self.predicted,
            "predicted_gain": self.gain,
            "tried": None if self.tried is None else self.tried.to_json(),
            "why_not": self.why_not or None,
        }


@dataclass(frozen=True)
class Bench:
    """What the feed does. Rates are samples/s of the dataset, before filters; MB/s are 10^6 bytes as they are stored.
    A shared machine changes its speed: what one bench says hangs together, and two benches may differ."""

    url: str
    format: str
    samples: int
    """Of the dataset."""
    batch_size: int
    threads: int
    """That the feed transforms with."""
    cores: int
    is_cold: bool
    """Whether the page cache was emptied of the shards before every repeat that reads them."""
    reached: Rate
    """The real feed's."""
    stored_bytes_per_sample: float
    first_batch_sec: float
    """From nothing to the first batch."""
    stages: Sequence[Stage]
    """In the order of the flow."""
    by_threads: Mapping[int, Rate]
    """The real feed with other numbers of threads."""
    remedies: Sequence[Remedy]
    """The largest predicted gain first."""
    unknown: Sequence[Unknown]
    """Changes of which nothing could be predicted."""
    au: float | None
    """The share of its time that a trainer of `step_sec` a step would work, 0 to 1; None without a `step_sec`."""
    step_sec: float | None
    sec: float
    """How long all of it took."""

    @property
    def bound(self) -> Stage:
        """The stage with the lowest ceiling, which is the nearest to what was reached."""
        return min(self.stages, key=lambda stage: stage.rate.samples_per_sec)

    @property
    def share_of_ceiling(self) -> float:
        """What was reached over the bounding stage's ceiling."""
        return self.reached.samples_per_sec / self.bound.rate.samples_per_sec

    @property
    def verdict(self) -> str:
        """What bounds the feed, and what would help."""
        bound = self.bound
        rate = fmt.rate(self.reached.samples_per_sec, "samples")
        what = (
            f"Bound by {bound.name}: the feed makes {rate}, {fmt.percent(self.share_of_ceiling)} of what {bound.name} "
            f"makes by itself with {fmt.plural(bound.threads, 'thread')} "
            f"({fmt.rate(bound.rate.samples_per_sec, 'samples')})."
        )
        return " ".join(part for part in (what, self._advice(), self._utilization()) if part)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "target": self.url,
            "format": self.format,
            "samples": self.samples,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "cores": self.cores,
            "cold": self.is_cold,
            "samples_per_sec": self.reached.samples_per_sec,
            "low": self.reached.low,
            "high": self.reached.high,
            "mb_per_sec": self.reached.samples_per_sec * self.stored_bytes_per_sample / 1e6,
            "first_batch_sec": self.first_batch_sec,
            "ceiling": self.bound.rate.samples_per_sec,
            "share_of_ceiling": self.share_of_ceiling,
            "bound": self.bound.name,
            "au": self.au,
            "stages": {stage.name: stage.to_json() for stage in self.stages},
            "by_threads": {str(threads): rate.to_json() for threads, rate in self.by_threads.items()},
            "remedies": [remedy.to_json() for remedy in self.remedies],
            "unknown": {one.name: one.reason for one in self.unknown},
            "verdict": self.verdict,
            "seconds": self.sec,
        }

    def _advice(self) -> str:
        best = next((remedy for remedy in self.remedies if remedy.gain >= WORTH_TRYING), None)
        if best is None:
            return "Of what was looked at nothing is predicted to give 5 % more."
        said = f"{best.name} is predicted to give {best.gain:.2f} times as much"
        if best.tried is None:
            return f"{said}; it was not tried{f': {best.why_not}' if best.why_not else ''}."
        achieved = best.tried.samples_per_sec / self.reached.samples_per_sec
        return f"{said}; a trial gave {achieved:.2f} times{'' if achieved >= WORTH_TRYING else ', so leave it'}."

    def _utilization(self) -> str:
        if self.au is None or self.step_sec is None:
            return ""
        return f"A trainer of {fmt.seconds(self.step_sec)} a step would work {fmt.percent(self.au)} of its time."
