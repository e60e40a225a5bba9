"""What a run is to be: the Trainer's options as one value, which is checked before anything is begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headrace.alarms import Alarms
from headrace.train.average import EMA
from headrace.train.best import BestRule
from headrace.train.contract import LoaderLike
from headrace.train.evaluation import Metric
from headrace.train.guards import Guards
from headrace.train.objective import Inputs, Loss
from headrace.train.optimizers import OptimizerFactory
from headrace.train.parallel import Compression, TensorPlan
from headrace.train.schedules import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """As the Trainer's docstring says, which also has their defaults."""

    loss: Loss
    inputs: Inputs
    optimizer: OptimizerFactory
    schedule: Schedule
    mesh: str
    engine: str | None
    zero_stage: int
    tp_plan: TensorPlan | None
    pp_schedule: str
    pp_stages: Sequence[str] | None
    precision: str
    compression: Compression | None
    activation_checkpointing: str | None
    compile: bool
    micro_batch_size: int | None
    evaluate: LoaderLike | None
    evaluate_every: float
    metrics: Mapping[str, Metric]
    clip_grad_norm: float | None
    ema: EMA | None
    epochs: int | None
    steps: int | None
    checkpoint_every: int | None
    keep_checkpoints: int
    keep_best: BestRule | None
    checkpoints: str | Path | None
    checkpoint_async: bool
    guards: Guards | None
    alarms: Alarms | None
    save_frozen: bool
    hang_timeout_sec: float | None
    seed: int
    device: str | torch.device | None

    def described(self, model: nn.Module) -> dict[str, Any]:
        """What the record of a run says of it, as JSON values."""
        return {
            "model": type(model).__name__,
            "parameters": sum(param.numel() for param in model.parameters()),
            "optimizer": shown(self.optimizer),
            "schedule": shown(self.schedule),
            "engine": self.engine,
            "zero_stage": self.zero_stage if self.engine == "deepspeed" else None,
            "compression": None if self.compression is None else str(self.compression),
            "activation_checkpointing": self.activation_checkpointing,
            "compile": self.compile,
            "micro_batch_size": self.micro_batch_size,
            "clip_grad_norm": self.clip_grad_norm,
            "checkpoints": None if self.checkpoints is None else str(self.checkpoints),
            "checkpoint_async": self.checkpoint_async,
            "checkpoint_every": self.checkpoint_every,
            "evaluate_every": self.evaluate_every,
            "keep_best": None if self.keep_best is None else [self.keep_best.metric, self.keep_best.mode],
            "guards": asdict(self.guards) if self.guards is not None else None,
            "alarms": self.alarms.described() if self.alarms is not None else None,
            "hang_timeout_sec": self.hang_timeout_sec,
            "ema": None if self.ema is None else repr(self.ema),
            "seed": self.seed,
        }


def shown(part: Any) -> str:
    """A description as it prints; of a function its name, since its address would differ in every run."""
    return getattr(part, "__qualname__", None) or repr(part)
