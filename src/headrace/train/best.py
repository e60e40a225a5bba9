"""Which of the evaluated models is the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headrace.errors import OptionError, TrainingError
from headrace.train.evaluation import Evaluation

_KNOWN = {"loss": "min", "accuracy": "max"}


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation that has a checkpoint."""

    metric: str
    mode: str
    value: float
    step: int


@dataclass(frozen=True, slots=True)
class BestRule:
    """What makes a model better than another: a metric of the evaluation, and whether more of it is better."""

    metric: str
    mode: str
    """"min" or "max"."""

    @classmethod
    def parse(cls, given: str | tuple[str, str] | None) -> BestRule | None:
        """`keep_best` as a user writes it. Raises OptionError."""
        if given is None:
            return None
        metric, mode = (given, _KNOWN.get(given)) if isinstance(given, str) else given
        if mode not in ("min", "max"):
            raise OptionError(
                f"keep_best must be 'loss', 'accuracy', or a metric with its direction, as ('f1', 'max'): got {given!r}"
            )
        return cls(metric, mode)

    def better(self, found: Evaluation | None, step: int, than: Best | None) -> Best | None:
        """The evaluation after `step`, if there is one and it is the better; one that is not finite never is.

        Raises TrainingError when it does not have the metric.
        """
        if found is None:
            return None
        values = {"loss": found.loss, **found.metrics}
        if self.metric not in values:
            raise TrainingError(
                f"keep_best needs a metric of the evaluation: it has {', '.join(values)}, not {self.metric!r}"
            )
        value = values[self.metric]
        if value is None or not math.isfinite(value):
            return None
        if than is not None and (value >= than.value if self.mode == "min" else value <= than.value):
            return None
        return Best(self.metric, self.mode, value, step)

    def remembered(self, state: Mapping[str, Any]) -> Best | None:
        """What a checkpoint's state says was the best, if it was the best by this rule."""
        found = state.get("best")
        best = None if found is None else Best(**found)
        return best if best is not None and (best.metric, best.mode) == (self.metric, self.mode) else None


def noted(best: Best | None) -> dict[str, Any] | None:
    """As it stands in a checkpoint's state."""
    return None if best is None else asdict(best)
