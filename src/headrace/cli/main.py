"""The `headrace` command: one verb a module, each a thin function over the library.

Verbs import what they need when they run, so that `--help` and `--version` answer at once and without torch.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from headrace.cli import bench, export, inspect, pack, report, send, train, tune, watch
from headrace.cli.output import run
from headrace.version import __version__

app = typer.Typer(
    name="headrace",
    help="From a folder of files and a PyTorch model to a trained, measured run.",
    epilog="--debug, before or after the verb, shows the traceback of a failure.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"headrace {__version__}")
        raise typer.Exit


@app.callback()
def _headrace(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The options in front of the verb."""


app.command("pack")(pack.pack)
app.command("index")(inspect.index)
app.command("inspect")(inspect.inspect)
app.command("bench")(bench.bench)
app.command("train")(train.train)
app.command("export")(export.export)
app.command("tune")(tune.tune)
app.command("report")(report.report)
app.command("watch")(watch.watch)
app.command("send")(send.send)


def main() -> None:
    """The entry point of the `headrace` command."""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the locale cannot show are no failure
    sys.exit(run(app, sys.argv[1:]))


def _open_closed_streams() -> None:
    # What is opened next gets the first free number: without this a shard could become "stderr" to C libraries.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


if __name__ == "__main__":
    main()
