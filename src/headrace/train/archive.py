"""What a run keeps in its folder to go on from, and going on from it.

This is where a learner, a loader's position and a run folder meet: saving puts all three into one checkpoint, and
going on takes them out of one, or says that there is none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headrace.errors import StateError
from headrace.train.checkpoint import Checkpoints, Saved, read_tensors
from headrace.train.contract import LoaderLike
from headrace.train.frozen import check_frozen
from headrace.train.loop import Position
from headrace.train.record import versions
from headrace.train.rundir import Resumed, RunLock, candidates, first_readable
from headrace.train.snapshot import Learner


class Archive:
    """The checkpoints of one Trainer. Without a run folder it can read one by its path, and saves none."""

    def __init__(
        self,
        run_dir: Path | None,
        learner: Learner,
        loader: LoaderLike,
        *,
        keep: int,
        seed: int,
        config: Callable[[], dict[str, Any]],
    ) -> None:
        """`keep` of the newest checkpoints stay; `config` describes the run, for whoever reads `state.json`."""
        self._run_dir = run_dir
        self._learner = learner
        self._world = learner.world
        self._loader = loader
        self._seed = seed
        self._config = config
        self._checkpoints = None if run_dir is None else Checkpoints(run_dir, learner.world, keep)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run folder, if there is one, on rank 0. Raises TargetError when another run does. Collective."""
        run_dir = self._run_dir
        locks: list[RunLock] = []
        if run_dir is not None:
            self._world.agree(lambda: locks.append(RunLock(run_dir)))
        try:
            yield
        finally:
            for lock in locks:
                lock.close()

    def go_on(self, resume: str | Path) -> tuple[Resumed, Position] | None:
        """Load what `resume` names ("auto", "never" or a path); None: the run begins anew. Collective."""
        paths = self._world.agree(lambda: self._candidates(resume))
        resumed = first_readable(paths, self._load, self._world)
        if resumed is None:
            return None
        state, checkpoints = resumed.state, self._checkpoints
        if checkpoints is not None:
            self._world.agree(lambda: checkpoints.set_aside(state["step"]))
        return resumed, Position(state["step"], state["samples"], state["loader"])

    def save(self, position: Position) -> Saved | None:
        """Write a checkpoint; None without a run folder. Collective."""
        if self._checkpoints is None:
            return None
        state = {
            "step": position.step,
            "samples": position.samples,
            "loader": position.loader,
            "optimizer": type(self._learner.optimizer).__name__,
            "numbers": self._learner.numbers(),
            "frozen": self._learner.frozen,
            "world_size": self._world.size,
            "config": self._config(),
            "versions": versions(),
        }
        return self._checkpoints.save(position.step, self._learner.tensors(), state)

    def _candidates(self, resume: str | Path) -> list[Path]:
        if self._checkpoints is not None:
            self._checkpoints.clean()
        return candidates(self._run_dir, resume, restarted=num_restarts() > 0)

    def _load(self, path: Path, state: dict[str, Any]) -> None:
        mine = type(self._learner.optimizer).__name__
        if state["optimizer"] != mine:
            raise StateError(f"it was trained with the optimizer {state['optimizer']}, this run has {mine}")
        check_frozen(state.get("frozen"), self._learner.frozen)
        tensors = read_tensors(path, self._learner.room, self._world)
        self._learner.adopt(tensors, state["numbers"], self._seed + state["step"])
        self._loader.load_state_dict(state["loader"])


def num_restarts() -> int:
    """How often the launcher has started the processes of this launch again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
