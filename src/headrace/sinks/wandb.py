"""Weights & Biases: a run there for a run here, kept in the run's folder until `wandb sync` sends it, or sent at once.

Rows are numbered through all starts of a run, as W&B asks for; the step is a value of each row and the axis of the
others, so that steps that a restart does again are no error.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from headrace.errors import OptionError
from headrace.sinks.history import History
from headrace.sinks.points import Point
from headrace.sinks.sink import Event, Memory, Output, check_every, need
from headrace.telemetry.secrets import cleaned

_MODES = ("offline", "online")
_FINISH_SEC = 8.0


@dataclass(frozen=True, slots=True)
class WandB:
    """A run in Weights & Biases, with the config. Needs `pip install 'headrace[wandb]'`.

    Args:
        project: its name there.
        mode: "offline" writes into the folder only, for `wandb sync` later; "online" sends at once, with the key that
            `wandb login` or WANDB_API_KEY gave.
        dir: where its folder `wandb` goes; None: into the run's folder.
        run_name: None: the name of the run's folder.
        every_sec: steps that end within so many seconds become one point, their mean; 0: every step is a point.
    """

    name: ClassVar[str] = "wandb"
    keeps: ClassVar[bool] = True

    project: str = "headrace"
    mode: Literal["offline", "online"] = "offline"
    dir: str | Path | None = None
    run_name: str | None = None
    every_sec: float = 1.0

    def check(self) -> None:
        """Raise OptionError for a wrong mode or `every_sec`, or without the library."""
        if self.mode not in _MODES:
            raise OptionError(f"the mode of the sink wandb must be one of {', '.join(_MODES)}: got {self.mode!r}")
        check_every(self.every_sec, self.name)
        need("wandb", self.name)

    def target(self, run_dir: Path) -> str:
        """The project, and the folder where it is kept."""
        return f"{self.project} {self.mode}, in {self._folder(run_dir)}"

    def open(self, run_dir: Path, memory: Memory) -> Output:
        """Begin a run, or go on with the one in memory: offline by another folder with the same id."""
        import wandb

        folder = self._folder(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        memory.setdefault("id", secrets.token_hex(4))
        memory.setdefault("rows", 0)
        run = wandb.init(
            project=self.project,
            name=self.run_name or run_dir.resolve().name,
            id=memory["id"],
            mode=self.mode,
            dir=str(folder),
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",  # a script may have a run of its own
            settings=wandb.Settings(silent=True, console="off", finish_timeout=_FINISH_SEC),
        )
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return _LoggedRun(run, self.every_sec, memory)

    def _folder(self, run_dir: Path) -> Path:
        return run_dir if self.dir is None else Path(self.dir).absolute()


class _LoggedRun(History):
    def __init__(self, run: Any, every_sec: float, memory: Memory) -> None:
        super().__init__(run.settings.sync_dir if run.offline else run.url, every_sec, memory)
        self._run = run

    def started(self, event: Event) -> None:
        """The config of the latest start."""
        told = {name: event.get(name) for name in ("config", "mesh", "precision", "world_size", "versions")}
        told = cleaned(told)
        self._run.config.update({**(told.pop("config") or {}), **told}, allow_val_change=True)

    def deliver(self, points: Sequence[Point]) -> None:
        """A row a point, at the time at which the step ended."""
        for point in points:
            row = {**point.values, "step": point.step, "_timestamp": point.time}
            self._run.log(row, step=self.memory["rows"])
            self.memory["rows"] += 1

    def end(self, outcome: str | None) -> None:
        """A run that failed is marked as such."""
        self._run.finish(exit_code=int(outcome == "failed"))

    def free(self) -> None:
        """Its own process is to end."""
        self._run.finish()
