"""How batches reach the device on time. Importing it needs no torch: the loader process has none."""

from headrace.load.job import Skipped
from headrace.load.loader import Loader
from headrace.load.mix import class_balanced, mix
from headrace.load.stream import Stream

__all__ = ["Loader", "Skipped", "Stream", "class_balanced", "mix"]
