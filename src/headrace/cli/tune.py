"""`headrace tune`: the settings with which a recipe does best."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.output import Json, emit, stopped_by_sigterm
from headrace.cli.train import new_run_dir
from headrace.errors import OptionError

if TYPE_CHECKING:
    from headrace.tuning import TuneResult


def tune(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE.py[:FUNCTION]",
            help="A function that returns a headrace.Trainer, which evaluates; without a name, `recipe`.",
            show_default=False,
        ),
    ],
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="NAME=WHAT",
            help="A setting to vary: lr=1e-4..1e-1:log, dropout=0..0.5, width=32,64,128; may be repeated.",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, metavar="N", help="Trials in all, those of an earlier call included.")
    ] = 20,
    metric: Annotated[
        str, typer.Option("--metric", help="What the recipe evaluates: loss, or the name of one of its metrics.")
    ] = "loss",
    direction: Annotated[str, typer.Option("--direction", metavar="minimize|maximize", help="Which way.")] = "minimize",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting that all trials have; may be repeated."),
    ] = None,
    mesh: Annotated[
        str | None, typer.Option("--mesh", metavar="M", help="Short for --set mesh=M, as in dp=2.", show_default=False)
    ] = None,
    pruner: Annotated[
        str,
        typer.Option("--pruner", metavar="median|hyperband|none", help="How poor trials are told and ended early."),
    ] = "median",
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, metavar="N", help="Trials at a time, each on its share of cores and GPUs.")
    ] = 1,
    nproc: Annotated[int, typer.Option("--nproc", min=1, metavar="N", help="Processes of a trial.")] = 1,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="The study's folder; gone on with if it exists.",
            show_default="runs/RECIPE-tune-N",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of what is proposed.")] = 0,
    json: Json = False,
) -> None:
    """Search for the settings with which a recipe does best, by many runs of which poor ones are ended early.

    Ctrl-C ends it; the same command with --run goes on. The last line is the command that trains with the best.
    """
    from headrace.train.recipe import RecipeTarget
    from headrace.tuning import tune as search_settings

    varied, chosen = _assignments("--search", search or []), _assignments("--set", settings or [])
    if mesh is not None:
        chosen["mesh"] = mesh
    run_dir = new_run_dir(run, f"{RecipeTarget.parse(recipe).name}-tune")
    print(f"tuning by {metric}, {jobs} trial{'s' if jobs > 1 else ''} at a time, study {run_dir}", file=sys.stderr)
    with stopped_by_sigterm():
        found = search_settings(
            recipe,
            search=varied,
            run_dir=run_dir,
            trials=trials,
            metric=metric,
            direction=direction,
            settings=chosen,
            pruner=pruner,
            jobs=jobs,
            nproc=nproc,
            seed=seed,
        )
    sentence = _sentence(found, metric)
    emit({**_to_json(found, metric), "summary": sentence}, json, f"{sentence}\n{found.command}")


def _assignments(option: str, texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"{option} is given as NAME=VALUE: got {text!r}")
        found[name] = value
    return found


def _to_json(found: TuneResult, metric: str) -> dict[str, Any]:
    best = found.best
    return {
        "run_dir": str(found.run_dir),
        "trials": len(found.trials),
        "complete": found.count("complete"),
        "pruned": found.count("pruned"),
        "failed": found.count("failed"),
        "metric": metric,
        "best": {
            "trial": best.number,
            "value": best.value,
            "settings": best.settings,
            "run_dir": str(best.run_dir),
        },
        "command": found.command,
    }


def _sentence(found: TuneResult, metric: str) -> str:
    chosen = ", ".join(f"{name}={text}" for name, text in found.best.settings.items())
    ends = f"{found.count('pruned')} ended early, {found.count('failed')} failed"
    return (
        f"best {metric} {found.best.value:.4g} with {chosen}, trial {found.best.number} of {len(found.trials)} "
        f"({ends}); run {found.best.run_dir}"
    )
