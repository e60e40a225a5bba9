"""A model on several processes: which of them hold what, and how their gradients come together."""

from headrace.train.parallel.compression import Compression, Reducer, Traffic, check_compression, power_sgd, top_k
from headrace.train.parallel.distribute import Distributed, distribute, parallelize
from headrace.train.parallel.exposed import Exposed
from headrace.train.parallel.mesh import Mesh, parse_mesh
from headrace.train.parallel.recompute import check_recompute

__all__ = [
    "Compression",
    "Distributed",
    "Exposed",
    "Mesh",
    "Reducer",
    "Traffic",
    "check_compression",
    "check_recompute",
    "distribute",
    "parallelize",
    "parse_mesh",
    "power_sgd",
    "top_k",
]
