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
        _check_share("final", self.final)

    def multiplier(self, step: int, total_steps: int) -> float:
        """The factor for the step after `step` completed ones; final <= factor <= 1 once the warm-up is over."""
        if step < self.warmup_steps:
            return _warmup(step, self.warmup_steps)
        return _half_cosine(1.0, self.final, _share_done(step, self.warmup_steps, total_steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A straight line from 1 after the warm-up down to `final` at the end."""

    warmup_steps: int = 0
    """Steps over which the factor rises linearly to 1; the first step has 1 / warmup_steps. 0: none."""
    final: float = 0.0
    """The factor that is reached after the last step; 0 <= final <= 1."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        _check_share("final", self.final)

    def multiplier(self, step: int, total_steps: int) -> float:
        """The factor for the step after `step` completed ones; final <= factor <= 1 once the warm-up is over."""
        if step < self.warmup_steps:
            return _warmup(step, self.warmup_steps)
        return 1 - (1 - self.final) * _share_done(step, self.warmup_steps, total_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class WSD:
    """Warm-up, stable, decay (Hu et al. 2024): 1 until the last part of the run, then a straight line to `final`.

    Where a run goes on further than was planned, it does so from a checkpoint before the decay.
    """

    warmup_steps: int = 0
    """Steps over which the factor rises linearly to 1; the first step has 1 / warmup_steps. 0: none."""
    decay: float = 0.1
    """The share of all steps over which it falls; 0 < decay <= 1."""
    final: float = 0.0
    """The factor that is reached after the last step; 0 <= final <= 1."""

    def __post_init__(self) -> None:
        _check_warmup(self.warmup_steps)
        _check_share("final", self.final)
        if not 0 < self.decay <= 1:
            raise OptionError(f"decay must be above 0 and at most 1, a share of all steps: got {self.decay}")

    def multiplier(self, step: int, total_steps: int) -> float:
        """The factor for the step after `step` completed ones; final <= factor <= 1 once the warm-up is over."""
        if step < self.warmup_steps:
            return _warmup(step, self.warmup_steps)
        first = max(self.warmup_steps, round((1 - self.decay) * total_steps))
        return 1 - (1 - self.final) * _share_done(step, first, total_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneCycle:
    """Up along half a cosine and down along another, far below the start (Smith and Topin 2018, as torch has it)."""

    rise: float = 0.3
    """The share of all steps over which the factor rises to 1; 0 < rise < 1."""
    start: float = 0.04
    """The factor of the first step; 0 < start <= 1."""
    final: float = 4e-6
    """The factor that is reached after the last step; 0 <= final <= start."""

    def __post_init__(self) -> None:
        if not 0 < self.rise < 1:
            raise OptionError(f"rise must be above 0 and below 1, a share of all steps: got {self.rise}")
        if not 0 < self.start <= 1:
            raise OptionError(f"start must be above 0 and at most 1: got {self.start}")
        if not 0 <= self.final <= self.start:
            raise OptionError(f"final must be at least 0 and at most start, {self.start}: got {self.final}")

    def multiplier(self, step: int, total_steps: int) -> float:
        """The factor for the step after `step` completed ones; final <= factor <= 1."""
        top = self.rise * total_steps
        if step < top:
            return _half_cosine(self.start, 1.0, step / top)
        return _half_cosine(1.0, self.final, min(1.0, (step - top) / (total_steps - top)))


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


def linear(warmup_steps: int = 0, final: float = 0.0) -> Linear:
    """A schedule that warms up linearly and then falls along a straight line to `final` times the learning rate.

    >>> linear(final=0.5).multiplier(step=50, total_steps=100)
    0.75
    """
    return Linear(warmup_steps=warmup_steps, final=final)


def wsd(warmup_steps: int = 0, decay: float = 0.1, final: float = 0.0) -> WSD:
    """A schedule that warms up, stays, and falls over the last `decay` of all steps to `final` times the learning rate.

    >>> [wsd(decay=0.2).multiplier(step, total_steps=100) for step in (79, 90)]
    [1.0, 0.5]
    """
    return WSD(warmup_steps=warmup_steps, decay=decay, final=final)


def one_cycle(rise: float = 0.3, start: float = 0.04, final: float = 4e-6) -> OneCycle:
    """A schedule that rises to the learning rate over `rise` of all steps, and then falls below where it began.

    >>> one_cycle().multiplier(step=30, total_steps=100)
    1.0
    """
    return OneCycle(rise=rise, start=start, final=final)


def _share_done(step: int, first: int, total_steps: int) -> float:
    """How much of the way from step `first` to the end is behind, 0 to 1."""
    return min(1.0, max(0, step - first) / max(1, total_steps - first))


def _half_cosine(begin: float, end: float, progress: float) -> float:
    return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise OptionError(f"{name} must be between 0 and 1, a share of the learning rate: got {value}")


def _warmup(step: int, warmup_steps: int) -> float:
    return 1.0 if step >= warmup_steps else (step + 1) / warmup_steps


def _check_warmup(warmup_steps: int) -> None:
    if warmup_steps < 0:
        raise OptionError(f"warmup_steps must be at least 0: got {warmup_steps}")
