"""The steps on whole batches, told which batch it is: their randomness is that of its place in the order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.errors import TransformError
from headrace.load.job import Delivery
from headrace.load.tensors import BatchDict
from headrace.ondevice import BatchStep, Steps
from headrace.order import Batches
from headrace.transform import batch_rng


@dataclass(frozen=True)
class OnDevice:
    """Steps on the batches of one rank."""

    steps: Steps
    seed: int
    batches: Batches

    @classmethod
    def of(cls, steps: Sequence[BatchStep], seed: int, batches: Batches) -> OnDevice:
        """Raises OptionError for what is no step."""
        return cls(Steps(steps), seed, batches)

    def __call__(self, batch: BatchDict, move: Callable[[BatchDict], BatchDict], delivery: Delivery) -> BatchDict:
        """The batch after all steps; `move` brings it from the host to the device, once it was looked at there.

        Raises TransformError, which names the step and the place.
        """
        position = delivery.step * self.batches.global_batch_size + self.batches.rank
        try:
            self.steps.check(batch)
            return self.steps(move(batch), lambda: batch_rng(self.seed, delivery.epoch, position))
        except TransformError as err:
            raise TransformError(f"step {delivery.step} of epoch {delivery.epoch}: {err}") from err
