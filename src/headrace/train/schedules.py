"""Schedules: by what the optimizer's learning rate is multiplied at each step.

A schedule is a pure function of (step, total steps), so its whole state is the step and nothing of it needs saving.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from headrace.errors import OptionError


class Schedule(Protocol):
    """What the Trainer asks of a schedule."""

    def multiplier(self, step: int, total_steps: int) -> float:
        """The factor on the learning rate for the step after `step` completed ones, 0 <= step < total_steps."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """1 after a linear warm-up."""

    warmup_steps: int = 0
    """Steps over which the factor rises linearly to 1; the first step has 1 / warmup_steps. 0: none."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)

    def multiplier(self, step: int, total_steps: int) -> float:
        """The factor for the step after `step` completed ones; 0 < factor <= 1."""
        return _warmup(step, self.warmup_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Half a cosine from 1 after the warm-up down to `final` at the end (Loshchilov and Hutter, 2017)."""

    warmup_steps: int = 0
    """Steps over which the factor rises linearly to 1; the first step has 1 / warmup_steps. 0: none."""
    final: float = 0.0
    """The factor that is reached after the last step; 0 <= final <= 1."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        if not 0 <= self.final <= 1:
            raise OptionError(f"final must be between 0 and 1, a share of the learning rate: got {self.final}")

    def multiplier(self, step: int, total_steps: int) -> float:
        """The factor for the step after `step` completed ones; final <= factor <= 1 once the warm-up is over."""
        if step < self.warmup_steps:
            return _warmup(step, self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(warmup_steps: int = 0) -> Constant:
    """A schedule that keeps the learning rate after `warmup_steps` of linear warm-up.

    >>> constant(warmup_steps=4).multiplier(step=0, total_steps=100)
    0.25
    """
    return Constant(warmup_steps=warmup_steps)


def cosine(warmup_steps: int = 0, final: float = 0.0) -> Cosine:
    """A schedule that warms up linearly and then falls along a cosine to `final` times the learning rate.

    >>> cosine(final=0.1).multiplier(step=50, total_steps=100)
    0.55
    """
    return Cosine(warmup_steps=warmup_steps, final=final)


def _warmup(step: int, warmup_steps: int) -> float:
    return 1.0 if step >= warmup_steps else (step + 1) / warmup_steps


def _check_warmup(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise OptionError(f"warmup_steps must be at least 0: got {warmup_steps}")
