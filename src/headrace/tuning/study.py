"""The study: what to try next, which trials are too poor to go on, and all that was found, in one SQLite file.

Optuna decides, and is imported here only. One process at a time writes a study; a trial that a killed one left open is
closed when the study is opened again, and its settings are tried anew.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.errors import OptionError, StorageError
from headrace.tuning.result import State, Trial
from headrace.tuning.space import Choices, Range, Space, as_text

FILE_NAME = "study.db"
PRUNERS = ("median", "hyperband", "none")
DIRECTIONS = ("minimize", "maximize")
_NAME = "headrace"
_PLAN, _FOLDER, _REASON, _RESULT, _AGAIN = "plan", "folder", "reason", "result", "tried_again"


class Study:
    """Proposes settings, and keeps what came of them."""

    def __init__(
        self, run_dir: Path, space: Space, plan: Mapping[str, Any], *, direction: str, pruner: str, seed: int, jobs: int
    ) -> None:
        """Open the study in a folder, or begin one. `plan`: what must be the same when it is gone on with.

        Raises OptionError without Optuna, and for a study of another plan; StorageError for a file that is no study.
        """
        self._optuna = _library()
        self._run_dir = run_dir
        self._distributions = {name: self._distribution(part) for name, part in space.items()}
        self._open: dict[int, Any] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            try:
                self._storage = self._optuna.storages.RDBStorage(f"sqlite:///{run_dir.absolute() / FILE_NAME}")
                self._study = self._opened(json.dumps(plan, sort_keys=True), direction)
            except (self._optuna.exceptions.StorageInternalError, ImportError, _database_error()) as err:
                reason = str(err.__cause__ or err).splitlines()[0]
                raise StorageError(f"{run_dir / FILE_NAME} cannot be used as a study: {reason}") from err
            self._study.pruner = self._pruner(pruner)
            # A study that is gone on with must not propose the same random beginning again.
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=seed + len(self._study.trials), constant_liar=jobs > 1
            )
        self._close_abandoned()

    def ask(self) -> tuple[int, Path, dict[str, str]]:
        """The next trial: its number, the folder for its run, which is not there yet, and its settings."""
        trial = self._study.ask(self._distributions)
        self._open[trial.number] = trial
        # Its own number, unless a study that was begun anew left a run there.
        places = (self._run_dir / f"trial-{n:04d}" for n in count(trial.number))
        run_dir = next(place for place in places if not place.exists())
        trial.set_user_attr(_FOLDER, run_dir.name)
        return trial.number, run_dir, {name: as_text(value) for name, value in trial.params.items()}

    def is_poor(self, number: int, evaluation: int, value: float) -> bool:
        """Note what an open trial's evaluation (counted from 1) found; whether the trial should end because of it."""
        self._open[number].report(value, evaluation)
        return bool(self._open[number].should_prune())

    def complete(self, number: int, value: float) -> None:
        """An open trial came to its end with this value."""
        self._study.tell(self._open.pop(number), value)

    def prune(self, number: int, value: float) -> None:
        """An open trial was ended for being poor; `value` is its last."""
        trial = self._open.pop(number)
        trial.set_user_attr(_RESULT, value)
        self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """An open trial failed."""
        trial = self._open.pop(number)
        trial.set_user_attr(_REASON, reason)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)

    def abandon(self, number: int) -> None:
        """An open trial was cut off through no fault of its own: its settings will be tried again."""
        self._try_again(self._open.pop(number))

    def trials(self) -> tuple[Trial, ...]:
        """All that ended by themselves."""
        return tuple(self._shown(trial) for trial in self._study.get_trials(deepcopy=False) if self._counts(trial))

    def close(self) -> None:
        """Let the file go."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _opened(self, plan: str, direction: str) -> Any:
        optuna = self._optuna
        if _NAME in optuna.get_all_study_names(self._storage):
            study = optuna.load_study(study_name=_NAME, storage=self._storage)
            began = study.user_attrs.get(_PLAN)
            if began == plan:
                return study
            if any(self._counts(trial) for trial in study.trials):
                raise OptionError(
                    f"a study goes on as it began: the one in {self._run_dir} has {_difference(began, plan)}; "
                    "choose another folder (--run)"
                )
            optuna.delete_study(study_name=_NAME, storage=self._storage)  # nothing came of it
        study = optuna.create_study(study_name=_NAME, storage=self._storage, direction=direction)
        study.set_user_attr(_PLAN, plan)
        return study

    def _close_abandoned(self) -> None:
        """This process holds the folder, so whoever ran these trials is gone."""
        for trial in self._study.get_trials(states=[self._optuna.trial.TrialState.RUNNING]):
            self._try_again(trial)

    def _try_again(self, trial: Any) -> None:
        # Enqueued first: killed in between, the settings are tried twice, not never.
        self._study.enqueue_trial(trial.params)
        self._study._storage.set_trial_user_attr(trial._trial_id, _AGAIN, True)
        self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)

    def _counts(self, trial: Any) -> bool:
        return trial.state.is_finished() and not trial.user_attrs.get(_AGAIN)

    def _shown(self, trial: Any) -> Trial:
        states = self._optuna.trial.TrialState
        shown: dict[Any, State] = {states.COMPLETE: "complete", states.PRUNED: "pruned"}
        value = trial.user_attrs.get(_RESULT) if trial.state == states.PRUNED else trial.value
        return Trial(
            number=trial.number,
            state=shown.get(trial.state, "failed"),
            settings={name: as_text(found) for name, found in trial.params.items()},
            value=value,
            reason=trial.user_attrs.get(_REASON),
            run_dir=self._run_dir / trial.user_attrs[_FOLDER],
        )

    def _distribution(self, part: Range | Choices) -> Any:
        distributions = self._optuna.distributions
        if isinstance(part, Choices):
            return distributions.CategoricalDistribution(part.texts)
        if part.whole:
            return distributions.IntDistribution(int(part.low), int(part.high), log=part.log)
        return distributions.FloatDistribution(part.low, part.high, log=part.log)

    def _pruner(self, name: str) -> Any:
        pruners = self._optuna.pruners
        made = {"median": pruners.MedianPruner, "hyperband": pruners.HyperbandPruner, "none": pruners.NopPruner}
        return made[name]()


def _difference(began: str | None, wanted: str) -> str:
    """As in `direction 'minimize' and not 'maximize'`."""
    before, now = json.loads(began or "{}"), json.loads(wanted)
    differ = [name for name, value in now.items() if before.get(name) != value]
    parts = [f"{name} {before.get(name)!r} and not {now[name]!r}" for name in differ]
    return ", ".join(parts) or "another plan"


def _library() -> ModuleType:
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as err:
        raise OptionError("a search of settings needs Optuna: pip install 'headrace[tune]'") from err
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _database_error() -> type[Exception]:
    error: type[Exception] = importlib.import_module("sqlalchemy.exc").SQLAlchemyError
    return error
