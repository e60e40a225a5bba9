"""What of a Trainer's options another library's engine can do; said before anything is begun."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from headrace.errors import OptionError
from headrace.train.optimizers import LAMB, Adafactor, ByRole
from headrace.train.options import Options, shown
from headrace.train.parallel import parse_mesh

DEFAULT_STAGE = 2
_STAGES = (1, 2, 3)


def check(options: Options) -> None:
    """Raise OptionError for what DeepSpeed cannot do, and where it is not installed."""
    if options.zero_stage not in _STAGES:
        raise OptionError(f"zero_stage must be 1, 2 or 3: got {options.zero_stage!r}")
    _check_others(options)
    if isinstance(options.optimizer, LAMB | Adafactor | ByRole):
        raise OptionError(
            "engine='deepspeed' cuts parameters anywhere, and this optimizer must see each whole: got "
            f"{shown(options.optimizer)}; take adamw() or sgd(), or a mesh with fsdp"
        )
    if find_spec("deepspeed") is None:
        raise OptionError("engine='deepspeed' needs DeepSpeed: pip install 'headrace[deepspeed]'")


def _check_others(options: Options) -> None:
    others = (
        (
            f"mesh={options.mesh!r}",
            "places the model itself, on all processes",
            parse_mesh(options.mesh).keys() != {"dp"},
        ),
        (f"precision={options.precision!r}", "works in fp32 or bf16", options.precision not in ("fp32", "bf16")),
        (f"compression={options.compression!s}", "sends gradients itself", options.compression is not None),
        (f"compile={options.compile}", "hooks into every layer, which compiled blocks leave out", options.compile),
        (f"ema={options.ema!r}", "keeps no average of the weights", options.ema is not None),
        ("guards", "keeps gradients to itself, and guards must see them", options.guards is not None),
    )
    for option, why, wrong in others:
        if wrong:
            raise OptionError(f"engine='deepspeed' {why}: got {option}; leave it away, or the engine")


def check_parameters(model: nn.Module) -> None:
    """Raise OptionError, naming it, for a parameter that is not of fp32, or that has no dimension to be cut along."""
    if any(hasattr(param, "ds_id") for param in model.parameters()):
        raise OptionError("a model that DeepSpeed has cut (zero_stage=3) cannot be given to it again: make it anew")
    for name, param in model.named_parameters():
        if param.dtype != torch.float32:
            raise OptionError(
                f"engine='deepspeed' keeps parameters in fp32: {name} is {str(param.dtype).removeprefix('torch.')}; "
                "call model.float(), and say precision='bf16' to compute in less"
            )
        if not param.dim():
            raise OptionError(
                f"engine='deepspeed' takes no parameter without dimensions: {name} is one; give it the shape (1,)"
            )
