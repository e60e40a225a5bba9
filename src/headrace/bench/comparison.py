"""What another library's loader makes beside headrace's feed, and what a trainer would make of each: arithmetic.

A loader that works while the trainer computes sets the pace where it is the slower of the two; one that works when it
is asked comes on top. With t seconds of input for a step's samples at full rate, and b seconds of a step that are no
waiting,

    seconds of a step = max(b, t)   or   b + t

and AU (accelerator utilization) is the seconds of computing over that. Left out is what both take of one machine's
processors: rates are measured while nothing computes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.bench.rates import Rate
from headrace.errors import OptionError
from headrace.load.foreign import LoaderFacts
from headrace.report import formatting as fmt
from headrace.report import read_run

_LEAST_STEPS = 5


@dataclass(frozen=True, slots=True)
class Step:
    """A training step as it would be if no batch was ever waited for."""

    samples: float
    """Of one rank."""
    busy_sec: float
    """All of it but waiting for batches."""
    compute_sec: float
    """Of that, computing."""
    au: float | None = None
    """What the run itself had, 0 to 1; None where no run was measured."""

    @classmethod
    def of_run(cls, run_dir: str | Path) -> Step:
        """The mean of a recorded run's steps, without the first. Raises OptionError for fewer than 5 of them."""
        run = read_run(run_dir)
        steps = run.steps
        known = [np.isfinite(steps[name]) for name in ("sec", "wait_sec", "compute_sec", "samples")]
        rows = run.steady_rows() & np.logical_and.reduce(known) & (steps["samples"] > 0)
        if rows.sum() < _LEAST_STEPS:
            raise OptionError(
                f"run must be a record of at least {_LEAST_STEPS} steps after the first one, with their times and "
                f"samples: {run_dir} has {int(rows.sum())}; or say step_sec"
            )
        ranks = max(1, int(run.attempts[-1].start.get("world_size") or 1)) if run.attempts else 1
        sec, wait, compute, samples = (
            float(steps[name][rows].mean()) for name in ("sec", "wait_sec", "compute_sec", "samples")
        )
        return cls(samples / ranks, sec - wait, compute, compute / sec)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a trainer would make of a feed."""

    steps_per_sec: float
    au: float
    """Seconds of computing over seconds of wall time, 0 to 1."""


@dataclass(frozen=True)
class Comparison:
    """A loader beside headrace's feed of the same data. Rates are samples/s; what is not known is None."""

    loader: LoaderFacts
    batch_size: int
    """Samples of the loader's batches, and of the feed's."""
    loader_rate: Rate
    """At full rate: nothing computes."""
    loader_first_batch_sec: float
    """From its `iter` to its first batch."""
    overlaps: bool
    """Whether it makes batches while the trainer computes."""
    loader_bytes_per_sample: float
    """Of what it gives out."""
    feed_rate: Rate | None
    feed_bytes_per_sample: float | None
    unknown: str
    """Why there is no feed of the same data, and what to do; empty where there is one."""
    notes: tuple[str, ...]
    """What to know of the comparison."""
    step: Step | None
    """What is trained; None: neither a run nor `step_sec` was given."""

    @property
    def by_loader(self) -> Prediction | None:
        """What the trainer makes of the loader."""
        return self._predicted(self.loader_rate, self.overlaps)

    @property
    def by_feed(self) -> Prediction | None:
        """What it would make of headrace's feed, which always works ahead."""
        return None if self.feed_rate is None else self._predicted(self.feed_rate, True)

    @property
    def sentence(self) -> str:
        """All of it, to read."""
        return " ".join([self._rates(), *self._predictions(), *self.notes])

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "loader": asdict(self.loader),
            "batch_size": self.batch_size,
            "loader_rate": self.loader_rate.to_json(),
            "loader_first_batch_sec": self.loader_first_batch_sec,
            "overlaps": self.overlaps,
            "loader_bytes_per_sample": self.loader_bytes_per_sample,
            "feed_rate": None if self.feed_rate is None else self.feed_rate.to_json(),
            "feed_bytes_per_sample": self.feed_bytes_per_sample,
            "unknown": self.unknown or None,
            "notes": list(self.notes),
            "step": None if self.step is None else asdict(self.step),
            "by_loader": None if self.by_loader is None else asdict(self.by_loader),
            "by_feed": None if self.by_feed is None else asdict(self.by_feed),
            "sentence": self.sentence,
        }

    def _predicted(self, rate: Rate, overlaps: bool) -> Prediction | None:
        if self.step is None:
            return None
        input_sec, busy_sec = self.step.samples / rate.samples_per_sec, self.step.busy_sec
        sec = max(busy_sec, input_sec) if overlaps else busy_sec + input_sec
        return Prediction(1 / sec, self.step.compute_sec / sec)

    def _rates(self) -> str:
        text = f"{_described(self.loader)} makes {fmt.rate(self.loader_rate.samples_per_sec, 'samples')} at full rate"
        if self.feed_rate is None:
            return f"{text}; what headrace's feed would make is unknown: {self.unknown}."
        return f"{text}, headrace's feed {fmt.rate(self.feed_rate.samples_per_sec, 'samples')} of the same data."

    def _predictions(self) -> list[str]:
        if self.step is None or self.by_loader is None:
            return ["What that means for training is unknown without run= or step_sec=."]
        shown = [f"{_shown(self.by_loader)} by this loader"]
        if self.by_feed is not None:
            shown.append(f"{_shown(self.by_feed)} by headrace")
        text = (
            f"A step of {fmt.number(self.step.samples)} samples that takes {fmt.seconds(self.step.busy_sec)} without "
            f"waiting is predicted to come to {' and '.join(shown)}"
        )
        return [f"{text}; the run had an AU of {self.step.au:.2f}." if self.step.au is not None else f"{text}."]


def _described(facts: LoaderFacts) -> str:
    if facts.num_workers is None:
        return f"The {facts.kind}"
    ahead = f", {facts.prefetch_factor} batches ahead each" if facts.num_workers and facts.prefetch_factor else ""
    return f"The {facts.kind} ({fmt.plural(facts.num_workers, 'worker')}{ahead})"


def _shown(prediction: Prediction) -> str:
    return f"{fmt.number(prediction.steps_per_sec)} steps/s and an AU of {prediction.au:.2f}"
