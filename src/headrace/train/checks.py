"""Whether a Trainer's options can work, before anything is begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from headrace.errors import OptionError
from headrace.storage import locate
from headrace.train.average import EMA
from headrace.train.best import BestRule
from headrace.train.contract import LoaderLike
from headrace.train.evaluation import Metric
from headrace.train.guards import Guards
from headrace.train.objective import PRECISIONS
from headrace.train.parallel import (
    Compression,
    TensorPlan,
    check_compression,
    check_plan,
    check_recompute,
    check_schedule,
    parse_mesh,
)


def check_options(
    *,
    precision: str,
    mesh: str,
    tp_plan: TensorPlan | None,
    pp_schedule: str,
    pp_stages: Sequence[str] | None,
    compression: Compression | None,
    ema: EMA | None,
    save_frozen: bool,
    activation_checkpointing: str | None,
    metrics: Mapping[str, Metric] | None,
    evaluate: LoaderLike | None,
    evaluate_every: float,
    clip_grad_norm: float | None,
    guards: Guards | None,
    hang_timeout_sec: float | None,
) -> None:
    """Raise OptionError for values, and combinations of them, that cannot work."""
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}: got {precision!r}")
    axes = parse_mesh(mesh)
    _check_parallel(mesh, axes, tp_plan, pp_schedule, pp_stages)
    if "pp" in axes and (ema is not None or not save_frozen):
        name = "ema" if ema is not None else "save_frozen=False"
        raise OptionError(f"{name} does not work with pipeline stages: got mesh={mesh!r}; take a mesh without pp")
    check_compression(compression, axes, precision)
    check_recompute(activation_checkpointing)
    if metrics and evaluate is None:
        raise OptionError(f"metrics need a loader to be evaluated on: got {', '.join(metrics)}; set evaluate")
    if evaluate is not None and evaluate.epochs is None:
        raise OptionError("evaluate must be a loader that ends: its stream has epochs=None; say epochs=1")
    if not evaluate_every > 0:
        raise OptionError(f"evaluate_every must be above 0, in epochs: got {evaluate_every}")
    if clip_grad_norm is not None and not clip_grad_norm > 0:
        raise OptionError(f"clip_grad_norm must be above 0, or None: got {clip_grad_norm}")
    if guards is not None and not isinstance(guards, Guards):
        raise OptionError(f"guards must be headrace.Guards(...), or None: got {guards!r}")
    if hang_timeout_sec is not None and not hang_timeout_sec > 0:
        raise OptionError(f"hang_timeout_sec must be above 0, or None: got {hang_timeout_sec}")


def _check_parallel(
    mesh: str,
    axes: Mapping[str, int | None],
    tp_plan: TensorPlan | None,
    pp_schedule: str,
    pp_stages: Sequence[str] | None,
) -> None:
    check_plan(tp_plan)
    if tp_plan is not None and "tp" not in axes:
        raise OptionError(f"tp_plan is for a mesh with tp: got mesh={mesh!r}; say mesh='tp=2', or leave it away")
    check_schedule(pp_schedule)
    if pp_stages is not None and "pp" not in axes:
        raise OptionError(f"pp_stages is for a mesh with pp: got mesh={mesh!r}; say mesh='pp=2', or leave it away")


def check_memory(model: nn.Module) -> None:
    """Raise OptionError, naming it, for a parameter or buffer that has no values."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise OptionError(
                f"a model must have its values before it is trained: {name} lies on device meta; make it without "
                "torch.device('meta'), or call model.to_empty(device='cpu') and set every value"
            )


def check_counts(**counts: int | None) -> None:
    """Raise OptionError, naming it, for a count below 1."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise OptionError(f"{name} must be at least 1, or None: got {value}")


def check_keeping(
    keep_best: str | tuple[str, str] | None, evaluate: LoaderLike | None, checkpoints: str | Path | None
) -> BestRule | None:
    """What `keep_best` means. Raises OptionError where it, or the place of the checkpoints, cannot work."""
    rule = BestRule.parse(keep_best)
    if rule is not None and evaluate is None:
        raise OptionError(f"keep_best={keep_best!r} needs a loader to be evaluated on: set evaluate")
    if checkpoints is not None:
        locate(checkpoints)
    return rule
