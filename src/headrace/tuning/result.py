"""What a search came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of the search."""

    number: int
    state: State
    """`pruned`: it was poor part-way, and ended; `failed`: an error or a kill ended it."""
    settings: dict[str, str]
    """What was searched, as texts for `--set`."""
    value: float | None
    """The metric of the last evaluation; None of a failed trial."""
    reason: str | None
    """Why it failed."""
    run_dir: Path
    """Its run, for `headrace report`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult:
    """What a search came to."""

    trials: tuple[Trial, ...]
    """All that ended, those of earlier calls included, in order of their numbers."""
    best: Trial
    """The complete trial with the best value."""
    command: str
    """The command line that trains with the best settings."""
    run_dir: Path

    def count(self, state: State) -> int:
        """How many trials ended so."""
        return sum(trial.state == state for trial in self.trials)
