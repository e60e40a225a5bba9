"""What packing does to samples on its own: one module a step, each a small description that is called on a sample.

A step takes a sample's dict and returns another, or None to drop the sample. Its `repr` says all that decides its
results, so it is part of the request by which an unfinished pack is recognised.
"""

from headrace.packing.steps.images import CheckImages, ShrinkImages
from headrace.packing.steps.missing import Fill, Require
from headrace.packing.steps.text import Tokenize
from headrace.packing.steps.where import Where

__all__ = ["CheckImages", "Fill", "Require", "ShrinkImages", "Tokenize", "Where"]
