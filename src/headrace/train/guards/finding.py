"""What a guard found, as the run's record and the log have it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_log = logging.getLogger("headrace.train")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found in a run, and what was done."""

    guard: str
    """Which guard: "finite", "spike", "rollback", "replica", "replay" or "straggler"."""
    step: int
    """The step that it was found in, counted from 1."""
    action: str
    """What was done, in a word or two."""
    detail: str
    """What was found, in a sentence."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What else the record is to have; JSON values."""

    def event(self) -> dict[str, Any]:
        """The fields of its event in the record."""
        said = {"step": self.step, "guard": self.guard, "action": self.action, "detail": self.detail}
        return said | self.fields


Note = Callable[[Finding], None]
"""Where findings go; all ranks have the same ones."""


def log(finding: Finding) -> None:
    """One line for whoever watches the run."""
    _log.warning("step %d: %s: %s", finding.step, finding.detail, finding.action)
