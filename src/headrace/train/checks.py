"""Whether a Trainer's options can work, before anything is begun."""

from __future__ import annotations

from headrace.alarms import Alarms
from headrace.errors import OptionError
from headrace.storage import locate
from headrace.train.average import EMA
from headrace.train.engines import check_engine
from headrace.train.guards import Guards
from headrace.train.objective import PRECISIONS
from headrace.train.options import Options
from headrace.train.parallel import (
    check_compression,
    check_float8,
    check_pipeline,
    check_plan,
    check_recompute,
    parse_mesh,
)

_FUNCTIONS = {
    "inputs": 'of a batch, such as lambda batch: batch["image"]',
    "loss": "of the model's output and the batch",
}


def check_options(options: Options) -> None:
    """Raise OptionError for values, and combinations of them, that cannot work."""
    for name in ("inputs", "loss"):
        if not callable(getattr(options, name)):
            raise OptionError(f"{name} is a function, {_FUNCTIONS[name]}: got {getattr(options, name)!r}")
    if options.precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}: got {options.precision!r}")
    _check_parallel(options)
    check_recompute(options.activation_checkpointing)
    _check_evaluation(options)
    if options.clip_grad_norm is not None and not options.clip_grad_norm > 0:
        raise OptionError(f"clip_grad_norm must be above 0, or None: got {options.clip_grad_norm}")
    if options.guards is not None and not isinstance(options.guards, Guards):
        raise OptionError(f"guards must be headrace.Guards(...), or None: got {options.guards!r}")
    if options.alarms is not None and not isinstance(options.alarms, Alarms):
        raise OptionError(f"alarms must be headrace.Alarms(...), or None: got {options.alarms!r}")
    if options.ema is not None and not isinstance(options.ema, EMA):
        raise OptionError(f"ema must be a decay, headrace.ema(...), or None: got {options.ema!r}")
    if options.hang_timeout_sec is not None and not options.hang_timeout_sec > 0:
        raise OptionError(f"hang_timeout_sec must be above 0, or None: got {options.hang_timeout_sec}")
    if options.checkpoints is not None:
        locate(options.checkpoints)
    check_counts(
        micro_batch_size=options.micro_batch_size,
        checkpoint_every=options.checkpoint_every,
        keep_checkpoints=options.keep_checkpoints,
        epochs=options.epochs,
        steps=options.steps,
    )


def _check_parallel(options: Options) -> None:
    mesh = options.mesh
    axes = parse_mesh(mesh)
    check_plan(options.tp_plan)
    if options.tp_plan is not None and "tp" not in axes:
        raise OptionError(f"tp_plan is for a mesh with tp: got mesh={mesh!r}; say mesh='tp=2', or leave it away")
    check_pipeline(mesh, options.pp_schedule, options.pp_stages)
    check_compression(options.compression, axes, options.precision)
    check_float8(options.precision, axes)
    check_engine(options)


def _check_evaluation(options: Options) -> None:
    evaluate, metrics, best = options.evaluate, options.metrics, options.keep_best
    if metrics and evaluate is None:
        raise OptionError(f"metrics need a loader to be evaluated on: got {', '.join(metrics)}; set evaluate")
    if evaluate is not None and evaluate.epochs is None:
        raise OptionError("evaluate must be a loader that ends: its stream has epochs=None; say epochs=1")
    if not options.evaluate_every > 0:
        raise OptionError(f"evaluate_every must be above 0, in epochs: got {options.evaluate_every}")
    if best is not None and evaluate is None:
        raise OptionError(f"keep_best={best.metric!r} needs a loader to be evaluated on: set evaluate")


def check_counts(**counts: int | None) -> None:
    """Raise OptionError, naming it, for a count below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise OptionError(f"{name} must be at least 1, or None: got {value}")
