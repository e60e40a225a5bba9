"""`headrace train`: a recipe on one or more processes, to the end or until it is told to stop."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.check import Subject, check
from headrace.cli.output import Json, emit
from headrace.errors import OptionError, StorageError, TrainingError
from headrace.telemetry import FILE_NAME

if TYPE_CHECKING:
    from headrace.report import Run

RUNS = Path("runs")
_RESUME, _MAX_RESTARTS = "auto", 3


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE.py[:FUNCTION]",
            help="A function that returns a headrace.Trainer; without a name, `recipe`.",
            show_default=False,
        ),
    ],
    nproc: Annotated[
        int | None,
        typer.Option("--nproc", min=1, help="Processes on this machine.", show_default="one a GPU; 1 without"),
    ] = None,
    mesh: Annotated[
        str | None, typer.Option("--mesh", metavar="M", help="Short for --set mesh=M, as in dp=2.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the recipe; may be repeated."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="DIR", help="The run's folder; gone on with if it exists.", show_default="runs/RECIPE-N"
        ),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="auto|never|PATH",
            help="From the newest checkpoint of the run; from none, in a new folder; from a checkpoint or another run.",
        ),
    ] = _RESUME,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", min=0, help="How often to start again after a process died; 0: never.")
    ] = _MAX_RESTARTS,
    nnodes: Annotated[
        str,
        typer.Option(
            "--nnodes",
            metavar="N|MIN:MAX",
            help="Machines, each of which runs this command; with MIN:MAX they may come and go.",
        ),
    ] = "1",
    rdzv_endpoint: Annotated[
        str | None,
        typer.Option(
            "--rdzv-endpoint",
            metavar="HOST:PORT",
            help="Where several machines meet: a free port of one that stays.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="A:B",
            help="Trace the steps A to B - 1 with torch's profiler, into RUN/profile.",
            show_default=False,
        ),
    ] = None,
    profile_all_ranks: Annotated[
        bool, typer.Option("--profile-all-ranks", help="Trace them on every process, not only on the first.")
    ] = False,
    sinks: Annotated[
        list[str] | None,
        typer.Option(
            "--sink",
            metavar="SINK",
            help="Where the run's events go, too: tensorboard[:DIR], prometheus[:[HOST:]PORT], mlflow[:URI] or "
            "wandb[:PROJECT]; may be repeated.",
        ),
    ] = None,
    requeue: Annotated[
        bool,
        typer.Option(
            "--requeue", help="Under Slurm: put the job back into the queue when it is stopped before its end."
        ),
    ] = False,
    check_sec: Annotated[
        float | None,
        typer.Option(
            "--check",
            metavar="T",
            min=1,
            help="Train for T seconds only, try what would help most, and say what was predicted and achieved.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train the model of a recipe, on NPROC processes of each of NNODES machines.

    A process that dies is no loss: all start again from the last checkpoint. SIGTERM and Ctrl-C checkpoint and end
    the run; the same command with --run goes on. The last line says what came of it.
    """
    from headrace.sinks import sinks_of
    from headrace.train import slurm
    from headrace.train.launch import default_nproc, launch
    from headrace.train.nodes import Nodes
    from headrace.train.profiling.options import Profile
    from headrace.train.recipe import RecipeTarget, load_recipe
    from headrace.train.settings import parse_settings
    from headrace.train.worker import Job

    if check_sec is not None:
        beside = {
            "--profile": profile is not None,
            "--resume": resume != _RESUME,
            "--max-restarts": max_restarts != _MAX_RESTARTS,
            "--sink": bool(sinks),
            "--requeue": requeue,
        }
        _check_alone([name for name, is_given in beside.items() if is_given])
    sinks_of(sinks or [])
    target = RecipeTarget.parse(recipe)
    chosen = [*(settings or []), *([f"mesh={mesh}"] if mesh is not None else [])]
    parse_settings(load_recipe(target), chosen)
    if profile is not None:
        Profile.parse(profile)
    elif profile_all_ranks:
        raise OptionError("--profile-all-ranks says who traces the steps of --profile A:B: add that")
    nodes = Nodes.of(nnodes, rdzv_endpoint)
    if check_sec is not None:
        if run is not None or not nodes.alone:
            raise OptionError("--check trains on this machine in folders of its own: leave --run and --nnodes away")
        check(Subject(recipe, tuple(chosen), nproc or default_nproc(), check_sec), json)
        return
    nodes.check_resume(resume)
    if run is None and not nodes.alone:
        raise OptionError("several machines need one folder that all see: add --run DIR, the same on all")
    if requeue:
        slurm.check_requeue()
        if run is None:
            raise OptionError("--requeue goes on in the same folder: add --run DIR")
    run_dir = new_run_dir(run, target.name)
    nproc = nproc or default_nproc()
    print(f"training on {nproc} process{'es' if nproc > 1 else ''}, run {run_dir}", file=sys.stderr)
    began = time.time()
    job = Job(
        recipe,
        str(run_dir),
        resume,
        tuple(chosen),
        elastic=not nodes.alone,
        profile=profile,
        profile_all_ranks=profile_all_ranks,
        sinks=tuple(sinks or ()),
    )
    launch(job, nproc, max_restarts, nodes)
    outcome = _outcome(run_dir, began)
    again = ["headrace", "train", recipe, "--nproc", str(nproc), "--run", str(run_dir)]
    again += ["--nnodes", nnodes, "--rdzv-endpoint", str(rdzv_endpoint)] if not nodes.alone else []
    again += [word for setting in chosen for word in ("--set", setting)]
    again += [word for sink in sinks or () for word in ("--sink", sink)]
    sentence = outcome.sentence(shlex.join(again))
    if outcome.stopped is not None and requeue and slurm.requeue():
        sentence += "; Slurm has the job in its queue again"
    emit({**outcome.to_json(), "summary": sentence}, json, sentence)


def _check_alone(beside: list[str]) -> None:
    """Refuse options that mean nothing to runs which last for seconds, and are removed."""
    if beside:
        raise OptionError(f"--check tries runs of some seconds and removes them: leave {', '.join(beside)} away")


def new_run_dir(given: Path | None, name: str) -> Path:
    """The folder given, else the first free of runs/NAME-1, runs/NAME-2, ...: made at once, so that it is ours."""
    try:
        if given is not None:
            given.mkdir(parents=True, exist_ok=True)
            return given
        for path in _numbered(name):
            if not path.exists():
                path.mkdir(parents=True)
                return path
    except OSError as err:
        raise StorageError(f"the run's folder {err.filename} cannot be made: {err.strerror}; choose --run DIR") from err
    raise AssertionError


def _numbered(name: str) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        yield RUNS / f"{name}-{number}"


@dataclass(frozen=True)
class _Outcome:
    """What a launch came to, by the events of its run."""

    run_dir: Path
    steps: int
    epochs: float
    total_steps: int | None
    loss: float | None
    metrics: dict[str, Any]
    evaluated: bool
    sent_bytes: int | None
    saved_bytes: int | None
    restarts: int
    resumed_from: str | None
    resumed_step: int
    stopped: str | None
    sec: float
    samples_per_sec: float | None
    au: float | None
    verdict: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "run_dir": str(self.run_dir),
            "steps": self.steps,
            "epochs": self.epochs,
            "loss": self.loss,
            "metrics": self.metrics,
            "seconds": self.sec,
            "samples_per_sec": self.samples_per_sec,
            "au": self.au,
            "verdict": self.verdict["sentence"],
            "bound": self.verdict["bound"],
            "sent_bytes": self.sent_bytes,
            "saved_bytes": self.saved_bytes,
            "restarts": self.restarts,
            "resumed_from": self.resumed_from,
            "stopped": self.stopped,
        }

    def sentence(self, again: str) -> str:
        after = f"after {self.epochs:,} epochs ({self.steps:,} steps) in {self.sec:.0f} s"
        history = f"; {self._history()}" if self._history() else ""
        if self.stopped is not None:
            of = f" of {self.total_steps:,}" if self.total_steps else ""
            return f"stopped at step {self.steps:,}{of}, with a checkpoint{history}; go on with: {again}"
        return f"{self._found()} {after}{history}; run {self.run_dir}"

    def _found(self) -> str:
        shown = [_metric(name, value) for name, value in self.metrics.items() if value is not None]
        if not shown and self.loss is not None:
            shown = [f"loss {self.loss:.4g}"]
        return ("test " if self.evaluated else "training ") + (", ".join(shown) or "done")

    def _history(self) -> str:
        restarts = f"{self.restarts} restart{'s' if self.restarts > 1 else ''}" if self.restarts else ""
        resumed = f"resumed from step {self.resumed_step:,}" if self.resumed_from else ""
        saved = ""
        if self.sent_bytes is not None and self.saved_bytes:
            whole = self.sent_bytes + self.saved_bytes
            saved = f"{self.sent_bytes / whole:.1%} of {whole / 1e6:,.1f} MB of gradients sent".replace("%", " %", 1)
        return ", ".join(part for part in (restarts, resumed, saved) if part)


def _metric(name: str, value: float) -> str:
    shown = f"{value:.1%}".replace("%", " %") if name.endswith("accuracy") else f"{value:.4g}"
    return f"{name} {shown}"


def _outcome(run_dir: Path, began: float) -> _Outcome:
    from headrace.report import read_run, verdict

    if not (run_dir / FILE_NAME).exists():
        raise TrainingError(f"the run in {run_dir} ended before training began, and its processes left no word why")
    run = read_run(run_dir)
    attempts = [attempt.start for attempt in run.attempts if attempt.start["time"] >= began]
    stop = next((event for event in reversed(run.stops) if event["time"] >= began), None)
    end = run.end if run.end is not None and run.end["time"] >= began else None
    if not attempts or (stop is None and end is None):
        saved = max((str(event["path"]) for event in run.checkpoints), default=None)
        where = (
            f"the same command with --run {run_dir} goes on from {saved}" if saved else "there is none to go on from"
        )
        raise TrainingError(f"the run in {run_dir} was stopped before it could write a checkpoint of its end: {where}")
    judged = verdict(run)
    last = attempts[-1]
    return _Outcome(
        run_dir=run_dir,
        steps=(end or stop or {}).get("step", run.num_steps),
        epochs=end["epochs"] if end else _epochs(run),
        total_steps=last["total_steps"],
        loss=end["loss"] if end else _last(run, "loss"),
        metrics=dict(end["metrics"]) if end else {},
        evaluated=bool(run.evaluations),
        sent_bytes=end.get("sent_bytes") if end else None,
        saved_bytes=end.get("saved_bytes") if end else None,
        restarts=len(attempts) - 1,
        resumed_from=last["resumed_from"],
        resumed_step=last["step"],
        stopped=stop["reason"] if end is None and stop else None,
        sec=time.time() - began,
        samples_per_sec=_samples_per_sec(run),
        au=judged.au,
        verdict=judged.to_json(),
    )


def _epochs(run: Run) -> float:
    """Whole epochs behind a run that was stopped within one."""
    return int(_last(run, "epoch") or 0)


def _last(run: Run, name: str) -> float | None:
    return float(run.steps[name][-1]) if run.num_steps else None


def _samples_per_sec(run: Run) -> float | None:
    """Over all steps but the first of each attempt."""
    rows = run.steady_rows()
    sec = float(run.steps["sec"][rows].sum()) if rows.any() else 0.0
    return float(run.steps["samples"][rows].sum()) / sec if sec else None
