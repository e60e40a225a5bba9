"""One process of a run that `headrace train` started: `python -m headrace.train.worker JOB`.

It builds the recipe's Trainer and fits it. How it ends tells the launcher what to do: 0, done or stopped as asked; an
error of its own is recorded and not tried again; a lost peer or a signal means that another process is to blame, and
that the run should be started again from its last checkpoint.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from headrace.errors import RecipeError
from headrace.sinks import with_named
from headrace.train.failure import Failure, first_failure, record_failure
from headrace.train.profiling.options import Profile
from headrace.train.recipe import RecipeTarget, load_recipe
from headrace.train.settings import parse_settings

if TYPE_CHECKING:
    from headrace.train.trainer import Trainer

_PR_SET_PDEATHSIG = 1

LOST_PEER = 75
"""Exit code of a worker whose peers went away: EX_TEMPFAIL, try again."""

WORKER_LOGS = "logs"

_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "timed out waiting",
    "wait timeout",
    "remote process exited",
    "connectfullmesh failed",
    "horovod has been shut down",
)


@dataclass(frozen=True, slots=True)
class Job:
    """What every worker of a launch is told."""

    recipe: str
    run_dir: str
    resume: str
    settings: tuple[str, ...]
    elastic: bool = False
    """Whether machines may come and go: then one that leaves does not end the run on the others."""
    seconds: float | None = None
    """How long steps are made, by a run that is only tried: it keeps to its folder. None: to the end."""
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of the recipe's "trainer" and "loader" to be changed."""
    profile: str | None = None
    """Steps to trace, as 100:110; None: what the recipe says."""
    profile_all_ranks: bool = False
    sinks: tuple[str, ...] = ()
    """By name, beside those of the recipe."""

    def to_json(self) -> str:
        """As the worker's one argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """From the worker's argument."""
        fields = json.loads(text)
        return cls(**{**fields, "settings": tuple(fields["settings"]), "sinks": tuple(fields["sinks"])})


def main(argument: str) -> NoReturn:
    """Run a job on this rank, and exit."""
    job = Job.from_json(argument)
    if first_failure(Path(job.run_dir)) is not None:
        _exit(1)
    # What ends a terminal's processes means the same here as the scheduler's signal: checkpoint and stop.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGTERM))
    # And so does the end of the launcher, however it ended: nobody would start this process again, or stop it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    trainer = None
    try:
        trainer = build_trainer(job)
        result = trainer.fit(resume=job.resume)
    except BaseException as err:
        _exit(_blame(err, Path(job.run_dir), trainer))
    # While the trainer is still held: see `_exit`.
    left_by_others = job.elastic and result.stopped is not None and not trainer.told_to_stop
    _exit(LOST_PEER if left_by_others else 0)


def _blame(error: BaseException, run_dir: Path, trainer: Trainer | None) -> int:
    """The exit code for an error, after leaving word of it where it is this rank's own."""
    rank = int(os.environ["RANK"])
    if is_lost_peer(error):
        with (
            suppress(OSError),  # on a full disk the run goes on, or ends, without this trace
            open(worker_log(run_dir, rank, os.environ["TORCHELASTIC_RESTART_COUNT"]), "a") as file,
        ):
            traceback.print_exception(error, file=file)
        return LOST_PEER
    record_failure(run_dir, Failure.of(error, rank, trainer.making if trainer is not None else None))
    return 1


def build_trainer(job: Job) -> Trainer:
    """The Trainer that the job's recipe returns, set to the job's run folder."""
    import torch

    from headrace.train.trainer import Trainer

    target = RecipeTarget.parse(job.recipe)
    function = load_recipe(target)
    settings = parse_settings(function, job.settings)
    torch.manual_seed(0)  # so that a model whose recipe sets no seed begins the same on every rank and in every run
    trainer = function(**settings)
    if not isinstance(trainer, Trainer):
        raise RecipeError(
            f"a recipe must return a headrace.Trainer: {target.path}:{target.function} "
            f"returned a {type(trainer).__name__}"
        )
    trainer.run_dir = Path(job.run_dir)
    trainer.stop_after_sec = job.seconds
    if job.changes:
        trainer.change(loader=job.changes.get("loader"), **job.changes.get("trainer", {}))
    if job.profile is not None:
        trainer.profile = Profile.parse(job.profile, job.profile_all_ranks)
    trainer.sinks = with_named(trainer.sinks, job.sinks)
    if job.seconds is not None:
        _keep_to_folder(trainer)
    trainer.tell_hang = partial(record_failure, trainer.run_dir)
    shown = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in settings.items()}
    trainer.config |= {"recipe": job.recipe, "settings": shown}
    return trainer


def _keep_to_folder(trainer: Trainer) -> None:
    """A run that is only tried leaves nothing outside its folder, tells nobody, and is not held up by a trace."""
    trainer.change(checkpoints=None, alarms=None)
    trainer.sinks, trainer.profile = (), None


def worker_log(run_dir: Path, rank: int, attempt: str) -> Path:
    """Where what a worker says goes, if not to the terminal; makes the folder."""
    folder = run_dir / WORKER_LOGS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"rank{rank}-attempt{attempt}.log"


def is_lost_peer(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is torch's or Horovod's word for a process that went away."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _names_lost_peer(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _names_lost_peer(error: BaseException) -> bool:
    distributed = getattr(sys.modules.get("torch.distributed"), "DistError", None)
    if distributed is not None and isinstance(error, distributed):
        return True
    return (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _LOST) and _of_a_library(error)
    )


def _of_a_library(error: BaseException) -> bool:
    """Whether torch, Horovod or our own call into them raised an error, not code of the user's that speaks of one."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = [
        os.path.dirname(str(sys.modules[name].__file__))
        for name in ("torch", "headrace", "horovod")
        if name in sys.modules
    ]
    return not frames or any(frames[-1].filename.startswith(folder + os.sep) for folder in libraries)


def _exit(code: int) -> NoReturn:
    """End this process without destroying what it holds.

    A rank that failed must not wait, in some library's exit handler, for peers that wait for it. One that is done runs
    the handlers, but leaves the process group to the system: destroying it can block for ever (see `World.part`).
    """
    if code == 0:
        from headrace.train.world import leave_world

        atexit.unregister(leave_world)
        atexit._run_exitfuncs()
    with suppress(OSError):  # the terminal may be gone, or the disk of a log full
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
