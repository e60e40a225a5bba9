"""What a run is guarded against, and what is done then."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headrace.errors import OptionError

_ANSWERS = ("raise", "repair")

_LEAST_VALUES = 16
"""So many values at least say what is usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What the Trainer watches for and answers by itself; every rank takes the same decision.

    A step whose loss or gradients are not finite is skipped, and the learning rate backs off. A loss or a norm of the
    gradients that stays far above what is usual takes the run back to the last good state, from which it goes on with
    the batches that follow. Raises OptionError for values that cannot work.

    >>> Guards(spike_score=8).spike_score
    8
    """

    max_bad_steps: int = 5
    """So many steps in a row that are not finite end the run with an error; at least 1. Each is skipped."""
    back_off: float = 0.5
    """What a skipped step multiplies the learning rate by, above 0 up to 1; 1: it stays."""
    recovery_steps: int = 100
    """Good steps in which one such factor is won back, at least 1."""
    spike_score: float | None = 10.0
    """Robust standard deviations above the median that make a spike, above 0; None: nobody looks."""
    spike_steps: int = 3
    """Spikes in a row upon which the run goes back, at least 1."""
    spike_window: int = 128
    """Latest steps that say what is usual, at least 16; no step is a spike before there are so many."""
    snapshot_every: int = 100
    """Steps between copies of the state in host memory, at least 1. The last two stay."""
    max_rollbacks: int = 3
    """How often a run goes back; the next time ends it with an error. 0: the first does."""
    check_every: int | None = 100
    """Steps between comparisons of the ranks, at least 1; there is one before every checkpoint. None: only those."""
    on_corruption: str = "raise"
    """What follows where replicas differ or compute does not repeat: "raise" ends the run with an error; "repair" has
    all replicas take the parameters, the optimizer's state and the averaged weights of the majority, of the lowest rank
    where there is none, and notes the rest."""
    replay_every: int | None = None
    """Steps between those whose first micro-batch is computed twice before, at least 1; not with sharded models.
    None: none is."""
    straggler_ratio: float | None = 1.5
    """A rank that takes more than so many times the ranks' median for its part of a step is noted, at least 1; None:
    nobody looks."""

    def __post_init__(self) -> None:
        _check_at_least(
            1,
            max_bad_steps=self.max_bad_steps,
            recovery_steps=self.recovery_steps,
            spike_steps=self.spike_steps,
            snapshot_every=self.snapshot_every,
        )
        _check_at_least(1, **{name: value for name, value in self._periods() if value is not None})
        _check_at_least(0, max_rollbacks=self.max_rollbacks)
        _check_at_least(_LEAST_VALUES, spike_window=self.spike_window)
        if not 0 < self.back_off <= 1:
            raise OptionError(f"back_off must be above 0 and at most 1: got {self.back_off}")
        if self.spike_score is not None and not 0 < self.spike_score < math.inf:
            raise OptionError(f"spike_score must be above 0, or None: got {self.spike_score}")
        if self.on_corruption not in _ANSWERS:
            raise OptionError(f"on_corruption must be one of {', '.join(_ANSWERS)}: got {self.on_corruption!r}")
        if self.straggler_ratio is not None and not 1 <= self.straggler_ratio < math.inf:
            raise OptionError(f"straggler_ratio must be at least 1, or None: got {self.straggler_ratio}")

    def _periods(self) -> tuple[tuple[str, int | None], ...]:
        return ("check_every", self.check_every), ("replay_every", self.replay_every)


def _check_at_least(least: int, **counts: int) -> None:
    for name, value in counts.items():
        if type(value) is not int or value < least:
            raise OptionError(f"{name} must be a whole number of at least {least}: got {value!r}")
