"""Whether a Trainer's options can work, before anything is begun."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from headrace.errors import OptionError
from headrace.train.contract import LoaderLike
from headrace.train.evaluation import Metric
from headrace.train.objective import PRECISIONS
from headrace.train.parallel import check_recompute, parse_mesh


def check_options(
    *,
    precision: str,
    mesh: str,
    activation_checkpointing: str | None,
    metrics: Mapping[str, Metric] | None,
    evaluate: LoaderLike | None,
    evaluate_every: float,
    clip_grad_norm: float | None,
) -> None:
    """Raise OptionError for values, and combinations of them, that cannot work."""
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}: got {precision!r}")
    parse_mesh(mesh)
    check_recompute(activation_checkpointing)
    if metrics and evaluate is None:
        raise OptionError(f"metrics need a loader to be evaluated on: got {', '.join(metrics)}; set evaluate")
    if evaluate is not None and evaluate.epochs is None:
        raise OptionError("evaluate must be a loader that ends: its stream has epochs=None; say epochs=1")
    if not evaluate_every > 0:
        raise OptionError(f"evaluate_every must be above 0, in epochs: got {evaluate_every}")
    if clip_grad_norm is not None and not clip_grad_norm > 0:
        raise OptionError(f"clip_grad_norm must be above 0, or None: got {clip_grad_norm}")


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
