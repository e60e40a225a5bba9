"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace.storage import Place


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
    stopped: str | None
    """Why the run ended early ("sigterm"); None: it is complete."""
    resumed_from: Path | Place | None
    """The checkpoint that this call went on from; a Place where it lies in a store."""
    run_dir: Path | None
