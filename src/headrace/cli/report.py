"""`headrace report`: one self-contained page about a run, or about several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.output import Json, emit


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN [RUN ...]",
            help="The folder of a run, or its events.jsonl; several are compared to the first.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="The page to write.",
            show_default="report.html in RUN, comparison.html in the last of several",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write one HTML page about a run, finished or not: what bounds it, loss, throughput, where the time went.

    The verdict is printed, then the page's path. Of several runs: what was changed between them, and what came of it.
    """
    if len(runs) == 1:
        _report(runs[0], output, json)
    else:
        _compare(runs, output, json)


def _report(run: Path, output: Path | None, json: bool) -> None:
    from headrace.report import verdict, write_page

    judged = verdict(run)
    path = str(write_page(run, output))
    details = judged.to_json()
    emit({"path": path, "verdict": details.pop("sentence"), **details}, json, f"{judged.sentence}\n{path}")


def _compare(runs: list[Path], output: Path | None, json: bool) -> None:
    from headrace.report import compare, comparison_text, write_comparison

    compared = compare(*runs)
    path = str(write_comparison(compared, output))
    details = compared.to_json()
    result = {"path": path, "verdict": details.pop("sentence"), **details}
    emit(result, json, f"{comparison_text(compared)}\n\n{path}")
