"""Which steps of a run are profiled, and on which ranks."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import OptionError

MOST_STEPS = 1000
_RULE = "profile must be two steps, the first one and the one behind the last, as 100:110 for steps 100 to 109"


@dataclass(frozen=True, slots=True)
class Profile:
    """Steps first to end - 1, counted from 1. Raises OptionError for what are no steps, and for more than 1,000."""

    first: int
    end: int
    all_ranks: bool = False
    """Every rank leaves a trace; else rank 0."""

    def __post_init__(self) -> None:
        if not (type(self.first) is int and type(self.end) is int and 1 <= self.first < self.end):
            raise OptionError(f"{_RULE}: got {self}")
        if self.end - self.first > MOST_STEPS:
            raise OptionError(
                f"a profile must have {MOST_STEPS:,} steps at most, since no viewer opens more: got {self}, which are "
                f"{self.end - self.first:,}"
            )

    def __str__(self) -> str:
        return f"{self.first}:{self.end}"

    @classmethod
    def of(cls, steps: object, all_ranks: bool = False) -> Profile | None:
        """From a pair of steps, as `Trainer(profile=)` has it; None: none."""
        if steps is None:
            if all_ranks:
                raise OptionError("profile_all_ranks says who traces the steps of profile: set that")
            return None
        if not isinstance(steps, tuple | list) or len(steps) != 2:
            raise OptionError(f"{_RULE}: got {steps!r}")
        first, end = steps
        return cls(first, end, all_ranks)

    @classmethod
    def parse(cls, text: str, all_ranks: bool = False) -> Profile:
        """From text such as 100:110."""
        first, _, end = text.partition(":")
        if not (first.isdecimal() and end.isdecimal()):
            raise OptionError(f"{_RULE}: got {text!r}")
        return cls(int(first), int(end), all_ranks)

    def check_within(self, total_steps: int) -> None:
        """Raise OptionError where a run of so many steps does not have all of them."""
        if self.end - 1 > total_steps:
            raise OptionError(f"profile must be steps of the run, which has {total_steps:,}: got {self}")
