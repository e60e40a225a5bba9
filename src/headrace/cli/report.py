"""`headrace report`: one self-contained page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.output import Json, emit


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or its events.jsonl.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.html", help="The page to write.", show_default="report.html in RUN"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write one HTML page about a run, finished or not: what bounds it, loss, throughput, where the time went.

    The verdict is printed, then the page's path.
    """
    from headrace.report import verdict, write_page

    judged = verdict(run)
    path = str(write_page(run, output))
    details = judged.to_json()
    emit({"path": path, "verdict": details.pop("sentence"), **details}, json, f"{judged.sentence}\n{path}")
