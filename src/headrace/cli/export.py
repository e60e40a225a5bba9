"""`headrace export`: a trained model as one safetensors file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.output import Json, emit


def export(
    run: Annotated[
        str,
        typer.Argument(
            help="The folder of a run, a folder or URL of checkpoints, or one checkpoint.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.", show_default=False)],
    best: Annotated[bool, typer.Option("--best", help="The run's best checkpoint, not its newest.")] = False,
    averaged: Annotated[
        bool | None,
        typer.Option(
            "--averaged/--no-averaged",
            help="The averaged weights (ema), or those that are trained.",
            show_default="averaged where evaluations were",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write the weights of a run's newest checkpoint to one safetensors file.

    It needs no GPU, no other process, and memory for the largest tensor only.
    """
    from headrace.train import export_safetensors

    done = export_safetensors(run, output, best=best, averaged=averaged)
    fields = {**asdict(done), "path": str(done.path)}
    averages = " with averaged weights" if done.averaged else ""
    emit(fields, json, f"step {done.step:,}: {done.tensors:,} tensors{averages}, {done.bytes:,} bytes in {done.path}")
