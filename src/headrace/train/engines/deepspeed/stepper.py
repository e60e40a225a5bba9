"""A step in which another library has the gradients: passes, weights and sums are the ordinary step's."""

from __future__ import annotations

from headrace.errors import TrainingError
from headrace.train.engines.deepspeed.zero import PartitionedOptimizer
from headrace.train.step import Outcome, Stepper
from headrace.train.tally import Sum


class PartitionedStepper(Stepper):
    """Makes steps by an optimizer that corrects, measures and clips the gradients by itself."""

    _optimizer: PartitionedOptimizer

    def _check_used(self) -> None:
        """Nothing to check: a parameter that takes no part has a gradient of 0."""
        self._checked = True

    def _correct(self, sums: Sum) -> bool:
        total = float(sums.weight())
        if not total:
            raise TrainingError(
                "with engine='deepspeed' a step needs a sample on some rank: all of a global batch were filtered or "
                "skipped; use a larger batch, or filter before streaming (ds.select)"
            )
        self._optimizer.correction = total / (self._data_size * self._expected)
        return True

    def _unguarded(self, outcome: Outcome, some: bool) -> None:
        """A norm that is not finite, from which nothing was learnt, ends the run when the sums are read."""
        self._optimizer.step()
        outcome.sums.fetch(self._optimizer.norm)
