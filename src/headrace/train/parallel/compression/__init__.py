"""Fewer bytes between replicas: how gradients are averaged over the ranks, and what is kept of what was not sent."""

from headrace.train.parallel.compression.options import Compression, check_compression, power_sgd, top_k
from headrace.train.parallel.compression.reducer import Reducer
from headrace.train.parallel.compression.wire import Traffic

__all__ = ["Compression", "Reducer", "Traffic", "check_compression", "power_sgd", "top_k"]
