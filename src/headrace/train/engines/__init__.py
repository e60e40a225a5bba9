"""Training by another library, which cuts model and optimizer and makes the steps; loop and checkpoints stay ours."""

from headrace.train.engines.checks import check_engine
from headrace.train.engines.learner import PartitionedLearner
from headrace.train.engines.stepper import PartitionedStepper
from headrace.train.engines.zero import Zero, zero_engine

__all__ = [
    "PartitionedLearner",
    "PartitionedStepper",
    "Zero",
    "check_engine",
    "zero_engine",
]
