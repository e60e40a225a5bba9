"""Pipeline parallel: a model cut into stages, which processes compute one after the other."""

from headrace.train.parallel.pipeline.build import (
    PipelineOptions,
    build_pipeline,
    check_schedule,
    micro_batch_plan,
)
from headrace.train.parallel.pipeline.pipeline import Pipeline
from headrace.train.parallel.pipeline.stages import cut_stages

__all__ = ["Pipeline", "PipelineOptions", "build_pipeline", "check_schedule", "cut_stages", "micro_batch_plan"]
