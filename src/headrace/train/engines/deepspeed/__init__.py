"""`engine="deepspeed"`: DeepSpeed's ZeRO cuts model and optimizer over the processes, and makes the steps."""

from headrace.train.engines.deepspeed.checks import DEFAULT_STAGE, check
from headrace.train.engines.deepspeed.learner import PartitionedLearner
from headrace.train.engines.deepspeed.stepper import PartitionedStepper
from headrace.train.engines.deepspeed.zero import Zero, distribute

__all__ = ["DEFAULT_STAGE", "PartitionedLearner", "PartitionedStepper", "Zero", "check", "distribute", "meet"]


def meet() -> None:
    """Nothing: the processes meet as torch's do."""
