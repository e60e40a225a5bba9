"""What decoding makes of samples, kept for the next epoch: in memory or in a folder, for all processes of a machine."""

from headrace.load.decoded.control import CacheControl, DecodedReading, KeptSamples
from headrace.load.decoded.held import HeldCache
from headrace.load.decoded.options import StorePlan, decoded_options
from headrace.load.decoded.steps import CachedSteps, Came, MissingError, Origin

__all__ = [
    "CacheControl",
    "CachedSteps",
    "Came",
    "DecodedReading",
    "HeldCache",
    "KeptSamples",
    "MissingError",
    "Origin",
    "StorePlan",
    "decoded_options",
]
