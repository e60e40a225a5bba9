"""`headrace bench`: what the feed does on this data and this machine, what bounds it, and what would help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.output import Json, emit, printable, stopped_by_sigterm
from headrace.errors import HeadraceError, OptionError, RecipeError

if TYPE_CHECKING:
    from rich.table import Table

    from headrace.bench import Bench, Rate
    from headrace.load import Stream

_WIDTH = 110
_DEFAULT_FUNCTION = "stream"


def bench(
    url: Annotated[
        str, typer.Argument(help="A dataset: a folder, a store's URL, a file, or files by braces.", show_default=False)
    ],
    stream: Annotated[
        str | None,
        typer.Option(
            "--stream",
            metavar="FILE.py[:FUNCTION]",
            help="A function of the opened dataset that returns a headrace.Stream; without a name, `stream`.",
            show_default="shuffled, and decoded by the fields' names",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Samples of a batch.")] = 32,
    threads: Annotated[
        int | None, typer.Option("--threads", help="That transform.", show_default="one a processor")
    ] = None,
    step_sec: Annotated[
        float | None,
        typer.Option("--step-sec", metavar="S", help="Seconds a step of the model takes: says how busy it would be."),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="T", help="How long to measure, about; at least 1.")
    ] = 20.0,
    cold: Annotated[
        bool, typer.Option("--cold", help="Empty the page cache of the shards before they are read (local disks).")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Try the change that is predicted to help most, for a moment.")
    ] = True,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw samples/s by threads, with error bars.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure the feed: each stage by itself, the real rate, what bounds it, and what would make it faster.

    What would help is predicted, and the best of it tried for a moment, on a copy of some of the data.
    """
    from headrace.dataset import open as open_dataset

    _check_plot(plot)
    with stopped_by_sigterm():
        from headrace.bench import draw, measure
        from headrace.load import Stream

        dataset = open_dataset(url)
        chosen = Stream(dataset).decode() if stream is None else _built(stream, dataset)
        found = measure(
            chosen,
            batch_size=batch_size,
            threads=threads,
            seconds=seconds,
            step_sec=step_sec,
            cold=cold,
            check=check,
        )
        if plot is not None:
            from headrace.storage import write_file

            write_file(plot, draw(found))
    result = found.to_json() | {"target": printable(found.url), "plot": None if plot is None else str(plot)}
    emit(result, json, "" if json else _text(found, plot))


def _check_plot(plot: Path | None) -> None:
    if plot is None:
        return
    if plot.suffix.lower() != ".png":
        raise OptionError(f"--plot names a .png file: got {str(plot)!r}")
    if not plot.parent.is_dir():
        raise OptionError(f"--plot writes into a folder that is there: {str(plot.parent)!r} is none; make it first")


def _built(text: str, dataset: object) -> Stream:
    from headrace.load import Stream
    from headrace.train.recipe import RecipeTarget, load_recipe

    target = RecipeTarget.parse(text, _DEFAULT_FUNCTION)
    function = load_recipe(target)
    try:
        made = function(dataset)
    except HeadraceError:
        raise
    except Exception as err:  # a function of the user's may raise anything
        raise RecipeError(f"{target.path}:{target.function}(dataset) failed: {type(err).__name__}: {err}") from err
    if not isinstance(made, Stream):
        raise RecipeError(
            f"{target.path}:{target.function} must return a headrace.Stream of the dataset that it is given: got "
            f"{type(made).__name__}"
        )
    return made


def _text(found: Bench, plot: Path | None) -> str:
    """The tables and the verdict, as wide as a page."""
    from rich.console import Console

    from headrace.report import formatting as fmt

    console = Console(width=_WIDTH, color_system=None, force_terminal=False, highlight=False)
    with console.capture() as capture:
        for table in (_stages(found), _sweep(found), _remedies(found)):
            if table.row_count:
                console.print(table)
    what = f"{printable(found.url)}: {found.format}, {found.samples:,} samples, batches of {found.batch_size:,}"
    storage = "the disk, the page cache emptied" if found.is_cold else "wherever the data is, the page cache included"
    lines = [
        f"{what}, {fmt.plural(found.cores, 'processor')}",
        f"read from {storage}; first batch after {found.first_batch_sec:.2f} s",
        "",
        *(line.rstrip() for line in capture.get().splitlines()),
        *(f"{one.name} cannot be predicted: {one.reason}" for one in found.unknown),
        found.verdict,
    ]
    return "\n".join([*lines, str(plot)] if plot is not None else lines)


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _stages(found: Bench) -> Table:
    table = _table(
        "The stages, each by itself: its ceiling", "stage", "threads", "samples/s", "least to most", "MB/s", "1 thread"
    )
    for stage in found.stages:
        alone = "" if stage.alone is None else f"{stage.alone.samples_per_sec:,.0f}"
        mark = "  < bounds" if stage.name == found.bound.name else ""
        table.add_row(
            stage.name + mark, str(stage.threads), *_cells(stage.rate), f"{stage.rate.mb_per_sec:,.1f}", alone
        )
    return table


def _sweep(found: Bench) -> Table:
    table = _table("The feed, by threads that transform", "threads", "samples/s", "least to most", "MB/s as stored")
    for threads, rate in found.by_threads.items():
        mark = "  < asked for" if threads == found.threads else ""
        stored = rate.samples_per_sec * found.stored_bytes_per_sample / 1e6
        table.add_row(f"{threads}{mark}", *_cells(rate), f"{stored:,.1f}")
    return table


def _remedies(found: Bench) -> Table:
    table = _table("What would change it", "change", "predicted samples/s", "times", "tried samples/s", "least to most")
    for remedy in found.remedies:
        tried = ("", "") if remedy.tried is None else _cells(remedy.tried)
        table.add_row(remedy.name, f"{remedy.predicted:,.0f}", f"{remedy.gain:.2f}", *tried)
    return table


def _cells(rate: Rate) -> tuple[str, str]:
    return f"{rate.samples_per_sec:,.0f}", f"{rate.low:,.0f} to {rate.high:,.0f}"
