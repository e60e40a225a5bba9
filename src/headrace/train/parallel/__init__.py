"""A model on several processes: which of them hold what, and how their gradients come together."""

from headrace.train.parallel.auto import choose_mesh
from headrace.train.parallel.buffers import share
from headrace.train.parallel.compression import Compression, Reducer, Traffic, check_compression, power_sgd, top_k
from headrace.train.parallel.distribute import Distributed, distribute, parallelize, take_place
from headrace.train.parallel.exposed import NOTHING, Exposed
from headrace.train.parallel.float8 import FLOAT8, check_float8, convert_layers, restore_layers
from headrace.train.parallel.mesh import AUTO, Mesh, parse_mesh
from headrace.train.parallel.pipeline import Pipeline, PipelineOptions, Staged, check_pipeline, micro_batch_plan
from headrace.train.parallel.placement import check_unplaced, place_layers
from headrace.train.parallel.recompute import check_recompute, recompute_activations
from headrace.train.parallel.refusals import check_memory, check_stage
from headrace.train.parallel.tensor import TensorPlan, check_plan

__all__ = [
    "AUTO",
    "FLOAT8",
    "NOTHING",
    "Compression",
    "Distributed",
    "Exposed",
    "Mesh",
    "Pipeline",
    "PipelineOptions",
    "Reducer",
    "Staged",
    "TensorPlan",
    "Traffic",
    "check_compression",
    "check_float8",
    "check_memory",
    "check_pipeline",
    "check_plan",
    "check_recompute",
    "check_stage",
    "check_unplaced",
    "choose_mesh",
    "convert_layers",
    "distribute",
    "micro_batch_plan",
    "parallelize",
    "parse_mesh",
    "place_layers",
    "power_sgd",
    "recompute_activations",
    "restore_layers",
    "share",
    "take_place",
    "top_k",
]
