"""A model on several processes: which of them hold what, and how their gradients come together."""

from headrace.train.parallel.auto import choose_mesh
from headrace.train.parallel.buffers import share_buffers
from headrace.train.parallel.compression import Compression, Reducer, Traffic, check_compression, power_sgd, top_k
from headrace.train.parallel.distribute import Distributed, distribute, parallelize, take_place
from headrace.train.parallel.exposed import NOTHING, Exposed
from headrace.train.parallel.mesh import AUTO, Mesh, parse_mesh
from headrace.train.parallel.pipeline import Pipeline, PipelineOptions, check_schedule, micro_batch_plan
from headrace.train.parallel.recompute import check_recompute, recompute_activations
from headrace.train.parallel.tensor import TensorPlan, check_plan

__all__ = [
    "AUTO",
    "NOTHING",
    "Compression",
    "Distributed",
    "Exposed",
    "Mesh",
    "Pipeline",
    "PipelineOptions",
    "Reducer",
    "TensorPlan",
    "Traffic",
    "check_compression",
    "check_plan",
    "check_recompute",
    "check_schedule",
    "choose_mesh",
    "distribute",
    "micro_batch_plan",
    "parallelize",
    "parse_mesh",
    "power_sgd",
    "recompute_activations",
    "share_buffers",
    "take_place",
    "top_k",
]
