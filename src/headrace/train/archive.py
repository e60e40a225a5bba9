"""What a run keeps to go on from, and going on from it.

This is where a learner, a loader's position and a run's checkpoints meet: saving puts all three into one checkpoint,
and going on takes them out of one, or says that there is none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import StateError
from headrace.storage import Place
from headrace.train.best import Best, BestRule, noted
from headrace.train.checkpoint import FOLDER, check_files, read_tensors, step_of
from headrace.train.contract import LoaderLike
from headrace.train.evaluation import Evaluation
from headrace.train.frozen import check_frozen
from headrace.train.homes import home_at
from headrace.train.loop import Position
from headrace.train.record import versions
from headrace.train.rundir import Resumed, RunLock, candidates, first_readable
from headrace.train.saving import Checkpoints, Saved
from headrace.train.snapshot import Learner


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where a run's checkpoints go, how they are written, and which of them stay."""

    newest: int
    best: BestRule | None
    place: str | os.PathLike[str] | None
    """A path or a store's URL; None: in the run's folder."""
    is_async: bool


class Archive:
    """The checkpoints of one Trainer. Without a run folder it can read one by its path, and saves none."""

    def __init__(
        self,
        run_dir: Path | None,
        learner: Learner,
        loader: LoaderLike,
        keeping: Keeping,
        *,
        seed: int,
        config: Callable[[], dict[str, Any]],
    ) -> None:
        """`config` describes the run, for whoever reads `state.json`."""
        self.run_dir = run_dir
        self._learner = learner
        self._world = learner.world
        self._loader = loader
        self._seed = seed
        self._config = config
        self._rule = keeping.best
        self._best: Best | None = None
        self._checkpoints: Checkpoints | None = None
        if run_dir is not None:
            home = home_at(keeping.place or run_dir / FOLDER, run_dir, self._world.rank)
            self._checkpoints = Checkpoints(home, self._world, keeping.newest, is_async=keeping.is_async)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run folder, if there is one, on rank 0. Raises TargetError when another run does. Collective.

        When the block ends by an error a save under way may still come to its end.
        """
        run_dir = self.run_dir
        locks: list[RunLock] = []
        if run_dir is not None:
            self._world.agree(lambda: locks.append(RunLock(run_dir)))
        try:
            yield
        finally:
            if self._checkpoints is not None:
                self._checkpoints.give_up()
            for lock in locks:
                lock.close()

    def go_on(self, resume: str | os.PathLike[str]) -> tuple[Resumed, Position] | None:
        """Load what `resume` names ("auto", "never", a path or URL); None: the run begins anew. Collective."""
        checkpoints = self._checkpoints
        if checkpoints is not None:
            checkpoints.wait()
        places = self._world.agree(lambda: self._candidates(resume))
        resumed = first_readable(places, self._load, self._world)
        if resumed is None:
            return None
        state = resumed.state
        if checkpoints is not None:
            self._world.agree(lambda: checkpoints.home.set_aside(state["step"]))
            self._best = self._world.agree(lambda: self._remembered(checkpoints, state))
        return resumed, Position(state["step"], state["samples"], state["loader"], guards=state.get("guards"))

    def is_best(self, position: Position, found: Evaluation | None) -> bool:
        """Whether an evaluation at this position is one whose checkpoint is to be kept as the best."""
        keeps = self._rule is not None and self._checkpoints is not None
        return keeps and self._better(position, found) is not None

    def save(self, position: Position, found: Evaluation | None = None) -> bool:
        """Write a checkpoint, or begin to; `found`: the evaluation at this position. False: the run keeps none.

        Collective.
        """
        if self._checkpoints is None:
            return False
        self._best = self._better(position, found) or self._best
        frozen = self._learner.frozen
        state = {
            "step": position.step,
            "samples": position.samples,
            "loader": position.loader,
            "guards": position.guards,
            "optimizer": self._learner.optimizer_name,
            "numbers": self._learner.numbers(),
            "frozen": None if frozen is None else frozen.fingerprint,
            "evaluates_average": self._learner.average is not None and self._learner.average.evaluated,
            "world_size": self._world.size,
            "sharing": self._learner.sharing,
            "evaluation": None if found is None else {"loss": found.loss, "metrics": found.metrics},
            "best": noted(self._best),
            "config": self._config(),
            "versions": versions(),
        }
        best = None if self._best is None else self._best.step
        self._checkpoints.save(position.step, self._learner.tensors(), state, best)
        return True

    @property
    def failed(self) -> bool:
        """Whether a save that was begun has failed, on this rank's word; `wait` raises why."""
        return self._checkpoints is not None and self._checkpoints.failed

    def finished(self) -> list[Saved]:
        """The checkpoints committed since the last call."""
        return [] if self._checkpoints is None else self._checkpoints.finished()

    def wait(self) -> None:
        """Wait until what was begun is committed. Collective; raises CheckpointError on all ranks."""
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def _better(self, position: Position, found: Evaluation | None) -> Best | None:
        return None if self._rule is None else self._rule.better(found, position.step, self._best)

    def _remembered(self, checkpoints: Checkpoints, state: dict[str, Any]) -> Best | None:
        best = None if self._rule is None else self._rule.remembered(state)
        steps = {step_of(place.name) for place in checkpoints.home.complete()}
        return best if best is not None and best.step in steps else None

    def _candidates(self, resume: str | os.PathLike[str]) -> list[Place]:
        home = None if self._checkpoints is None else self._checkpoints.home
        if home is not None:
            home.clean()
        return candidates(self.run_dir, home.place if home else None, resume, restarted=num_restarts() > 0)

    def _load(self, place: Place, state: dict[str, Any]) -> None:
        mine = self._learner.optimizer_name
        if state["optimizer"] != mine:
            raise StateError(f"it was trained with the optimizer {state['optimizer']}, this run has {mine}")
        frozen = self._learner.frozen
        check_frozen(state.get("frozen"), None if frozen is None else frozen.fingerprint)
        check_files(place, state["files"], self._world)
        tensors = read_tensors(place, self._learner.room, self._world)
        tp, pp = state.get("sharing", (1, 1))
        self._learner.adopt(tensors, state["numbers"], self._seed + state["step"], (tp, pp))
        self._loader.load_state_dict(state["loader"])


def num_restarts() -> int:
    """How often the launcher has started the processes of this launch again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
