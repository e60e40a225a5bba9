"""The search: trials are started while there is room, watched by the events of their runs, and judged.

One thread, one study: only this process writes what was found. Whatever happens to a trial happens to its own process.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from headrace.errors import OptionError, TrainingError
from headrace.telemetry import progress
from headrace.telemetry.progress import Advance
from headrace.train.recipe import RecipeTarget, load_recipe
from headrace.train.rundir import RunLock
from headrace.train.settings import parse_settings, recipe_settings
from headrace.train.worker import Job
from headrace.tuning.result import Trial, TuneResult
from headrace.tuning.running import RunningTrial, Share, visible_gpus
from headrace.tuning.space import Space, as_text, parse_space
from headrace.tuning.study import DIRECTIONS, PRUNERS, Study

_POLL_SEC = 0.1
_MOST_FIRST_FAILURES = 3
"""So many failed trials and no other: the recipe is broken, not its settings."""


def tune(
    recipe: str | Path,
    *,
    search: Mapping[str, str],
    run_dir: str | Path,
    trials: int = 20,
    metric: str = "loss",
    direction: str = "minimize",
    settings: Mapping[str, Any] | None = None,
    pruner: str = "median",
    jobs: int = 1,
    nproc: int = 1,
    seed: int = 0,
) -> TuneResult:
    """Search for the settings with which a recipe's evaluated metric is best.

    Calling it again with the same `run_dir` goes on to `trials` trials in all. Needs the extra `tune` (Optuna).

    Args:
        recipe: `FILE.py` or `FILE.py:function`.
        search: setting -> what to try, as text: `"1e-4..1e-1:log"`, `"0..0.5"` or `"32,64,128"`.
        run_dir: folder of the study; each trial is a run in a folder of its own in it, `trial-0000` and so on.
        trials: how many in all, at least 1; pruned and failed ones count.
        metric: "loss", or a metric that the recipe's Trainer evaluates; the last evaluation of a run counts.
        direction: "minimize" or "maximize".
        settings: the other settings of the recipe; those left out have their defaults.
        pruner: "median" ends a trial that is below the median of those before it at the same evaluation, from the
            sixth trial on; "hyperband" gives many trials few evaluations and few many; "none" ends none.
        jobs: trials at a time, each on its share of the cores and GPUs.
        nproc: processes of a trial.
        seed: of what is proposed. With one job the same seed proposes the same.

    Raises OptionError for what cannot work, TargetError when another search holds the folder, TrainingError when no
    trial could be finished. Interrupted trials are started again by the next call.
    """
    _check(direction, pruner, trials=trials, jobs=jobs, nproc=nproc)
    target, folder = str(recipe), Path(run_dir)
    fixed = {name: as_text(value) for name, value in (settings or {}).items()}
    space = _space(target, search, fixed)
    plan = {"recipe": target, "search": dict(search), "settings": fixed, "metric": metric, "direction": direction}
    with (
        closing(RunLock(folder)),
        closing(Study(folder, space, plan, direction=direction, pruner=pruner, seed=seed, jobs=jobs)) as study,
    ):
        gpus = visible_gpus()
        shares = [Share.of(slot, jobs, nproc, gpus) for slot in range(jobs)]
        _Search(study, target, fixed, metric, direction, nproc).run(trials, shares)
        return _result(study.trials(), direction, folder, ["headrace", "train", target, "--nproc", str(nproc)], fixed)


class _Search:
    """Runs trials of one study."""

    def __init__(
        self, study: Study, recipe: str, fixed: Mapping[str, str], metric: str, direction: str, nproc: int
    ) -> None:
        self._study = study
        self._recipe = recipe
        self._fixed = fixed
        self._metric = metric
        self._direction = direction
        self._nproc = nproc
        self._running: dict[Share, RunningTrial] = {}

    def run(self, trials: int, shares: list[Share]) -> None:
        """Until so many trials have ended. An interrupt ends those under way with a checkpoint each."""
        done = self._study.trials()
        with progress("tune", trials, "trials") as advance:
            advance(len(done), note=self._note(done))
            try:
                while len(done) < trials:
                    self._start(min(trials - len(done), len(shares)), shares)
                    time.sleep(_POLL_SEC)
                    if self._look():
                        done = self._advanced(done, advance)
            finally:
                self._abandon()

    def _advanced(self, before: tuple[Trial, ...], advance: Advance) -> tuple[Trial, ...]:
        done = self._study.trials()
        advance(len(done) - len(before), note=self._note(done))
        if len(done) >= _MOST_FIRST_FAILURES and all(trial.state == "failed" for trial in done):
            raise TrainingError(f"all {len(done)} trials failed, the last one because {done[-1].reason}")
        return done

    def _start(self, most: int, shares: list[Share]) -> None:
        for share in shares:
            if share not in self._running and len(self._running) < most:
                number, run_dir, chosen = self._study.ask()
                assignments = tuple(f"{name}={text}" for name, text in {**self._fixed, **chosen}.items())
                job = Job(self._recipe, str(run_dir), "never", assignments)
                self._running[share] = RunningTrial(number, job, self._nproc, share, self._metric)

    def _look(self) -> bool:
        """Take in what trials did since; whether one of them ended."""
        ended = False
        for share, trial in list(self._running.items()):
            alive = trial.is_alive()  # asked first, so that all that a dead one wrote is read
            self._judge(trial, trial.news(), alive)
            if not alive:
                self._end(trial)
                del self._running[share]
                ended = True
        return ended

    def _judge(self, trial: RunningTrial, new: int, alive: bool) -> None:
        """Note the `new` last evaluations, which later trials are compared with; end a live one that is poor."""
        for number in range(len(trial.evaluations) - new, len(trial.evaluations)):
            value = trial.evaluations[number]
            poor = value is not None and self._study.is_poor(trial.number, number + 1, value)
            if poor and alive and not trial.pruned:
                trial.prune()

    def _end(self, trial: RunningTrial) -> None:
        value = trial.evaluations[-1] if trial.evaluations else None
        if trial.is_complete() and not trial.evaluations:
            raise OptionError(f"a search goes by what is evaluated: {self._recipe} evaluates nothing; set evaluate=")
        if value is None:
            not_finite = f"the metric {self._metric} was not finite"
            self._study.fail(trial.number, not_finite if trial.evaluations else trial.reason())
        elif trial.is_complete():
            self._study.complete(trial.number, value)
        elif trial.pruned:
            self._study.prune(trial.number, value)
        else:
            self._study.fail(trial.number, trial.reason())

    def _abandon(self) -> None:
        """End what is still under way."""
        for trial in self._running.values():
            trial.stop()
        for trial in self._running.values():
            trial.wait()
            self._study.abandon(trial.number)

    def _note(self, done: tuple[Trial, ...]) -> str:
        best = _best(done, self._direction)
        return f"best {self._metric} {best.value:.4g}" if best is not None else ""


def _check(direction: str, pruner: str, **counts: int) -> None:
    for name, value, known in (("direction", direction, DIRECTIONS), ("pruner", pruner, PRUNERS)):
        if value not in known:
            raise OptionError(f"{name} must be one of {', '.join(known)}: got {value!r}")
    for name, count in counts.items():
        if count < 1:
            raise OptionError(f"{name} must be at least 1: got {count}")


def _space(recipe: str, search: Mapping[str, str], fixed: Mapping[str, str]) -> Space:
    """What is searched, after a look at all settings of the recipe."""
    function = load_recipe(RecipeTarget.parse(recipe))
    both = sorted(set(search) & set(fixed))
    if both:
        raise OptionError(f"a setting is searched or set, not both: got both of {', '.join(both)}")
    space = parse_space(recipe_settings(function), search)
    first = {name: part.texts[0] if hasattr(part, "texts") else as_text(part.low) for name, part in space.items()}
    parse_settings(function, [f"{name}={text}" for name, text in {**fixed, **first}.items()])
    return space


def _best(trials: tuple[Trial, ...], direction: str) -> Trial | None:
    sign = 1 if direction == "minimize" else -1
    complete = [trial for trial in trials if trial.state == "complete"]
    return min(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)


def _result(
    trials: tuple[Trial, ...], direction: str, folder: Path, command: list[str], fixed: Mapping[str, str]
) -> TuneResult:
    best = _best(trials, direction)
    if best is None:
        reasons = [trial.reason for trial in trials if trial.reason]
        raise TrainingError(f"none of {len(trials)} trials was finished, the last one because {reasons[-1]}")
    words = [word for name, text in {**fixed, **best.settings}.items() for word in ("--set", f"{name}={text}")]
    return TuneResult(trials=trials, best=best, command=shlex.join([*command, *words]), run_dir=folder)
