"""Pipeline parallel: a model cut into stages, which processes compute one after the other."""

from headrace.train.parallel.pipeline.build import (
    PipelineOptions,
    build_pipeline,
    check_pipeline,
    micro_batch_plan,
)
from headrace.train.parallel.pipeline.pipeline import Pipeline
from headrace.train.parallel.pipeline.staged import Staged
from headrace.train.parallel.pipeline.stages import cut_stages

__all__ = [
    "Pipeline",
    "PipelineOptions",
    "Staged",
    "build_pipeline",
    "check_pipeline",
    "cut_stages",
    "micro_batch_plan",
]
