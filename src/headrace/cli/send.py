"""`headrace send`: a run's events to where experiments are looked at."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.output import Json, emit
from headrace.errors import OptionError


def send(
    run: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)],
    sinks: Annotated[
        list[str] | None,
        typer.Option(
            "--sink",
            metavar="SINK",
            help="tensorboard[:DIR], mlflow[:URI] or wandb[:PROJECT]; may be repeated.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Send a run, finished or not, to sinks: all that they do not have of it yet."""
    from headrace.sinks import send as send_run

    if not sinks:
        raise OptionError("say where to: --sink tensorboard, mlflow or wandb")
    sent = send_run(run, sinks)
    text = "\n".join(f"{one.events:,} events to {one.sink}: {one.where}" for one in sent)
    emit({"path": str(run), "sent": [asdict(one) for one in sent]}, json, text)
