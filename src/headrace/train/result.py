"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace.storage import Place
from headrace.train.parallel import Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a run came to."""

    steps: int
    """Completed steps, those before a resume included."""
    epochs: float
    """Completed passes over the data; a whole number unless `steps` ended the run within one."""
    samples: int
    """Real samples of these steps over all ranks."""
    sec: float
    """Seconds that this call took."""
    loss: float | None
    """Of the last evaluation; without one, of the last step. None when nothing was left to do."""
    metrics: dict[str, float | None]
    """Of the last evaluation; without one, of the last step."""
    traffic: Traffic | None
    """Gradients that this rank sent to other replicas in this call, in bytes; None: there are none, or not known."""
    overflowed_steps: int
    """Steps of this call from which nothing was learnt, because gradients did not fit into fp16."""
    stopped: str | None
    """Why the run ended early ("sigterm"); None: it is complete."""
    resumed_from: Path | Place | None
    """The checkpoint that this call went on from; a Place where it lies in a store."""
    run_dir: Path | None
