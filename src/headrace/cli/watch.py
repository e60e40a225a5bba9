"""`headrace watch`: a run while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.output import Json, emit
from headrace.errors import OptionError

if TYPE_CHECKING:
    from rich.live import Live

    from headrace.report.follow import Follower, Present

_OVER = ("complete", "stopped", "failed")


def watch(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or its events.jsonl.", show_default=False)],
    every: Annotated[float, typer.Option(metavar="SEC", help="Seconds between two looks, 0.1 or more.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and end.")] = False,
    json: Json = False,
) -> None:
    """Show a run as it goes on, on one screen: how far it is, what bounds it now, its feed, what guards found.

    Rates and the verdict are of the latest half minute. It ends with the run, or by Ctrl-C, which the run does not
    notice. Where stdout is no terminal a line is printed at each look.
    """
    from headrace.report import verdict
    from headrace.report.follow import Follower, Present
    from headrace.report.screen import line

    if not every >= 0.1:
        raise OptionError(f"--every must be 0.1 seconds or more: got {every}")
    follower = Follower(run)
    present = Present(follower.path)
    with suppress(KeyboardInterrupt):
        _show(follower, present, every, once, quiet=json)
    step = 0 if present.step is None else present.step["step"]
    result: dict[str, Any] = {"path": str(follower.path), "state": present.state, "step": step}
    result |= {"total_steps": present.total_steps, "samples_per_sec": present.samples_per_sec}
    result |= {"loss": None if present.step is None else present.step.get("loss")}
    result |= {"verdict": verdict(present.run()).sentence}
    if json:
        emit(result, json, line(present))


def _show(follower: Follower, present: Present, every: float, once: bool, *, quiet: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from headrace.report.screen import line, screen

    console = Console()
    if quiet:
        _repeat(follower, present, lambda: None, every, once)
    elif not sys.stdout.isatty():
        _repeat(follower, present, lambda: print(line(present), flush=True), every, once)
    elif once:
        _repeat(follower, present, lambda: console.print(screen(present, console)), every, once)
    else:
        with Live(console=console, auto_refresh=False) as live:
            shown = partial(_update, live, present)
            _repeat(follower, present, shown, every, once)


def _update(live: Live, present: Present) -> None:
    from headrace.report.screen import screen

    live.update(screen(present, live.console), refresh=True)


def _repeat(follower: Follower, present: Present, show: Callable[[], None], every: float, once: bool) -> None:
    while True:
        for event in follower.new_events():
            present.take(event)
        show()
        if once or present.state in _OVER:
            return
        time.sleep(every)
