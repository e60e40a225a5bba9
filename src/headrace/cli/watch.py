"""`headrace watch`: a run while it goes on."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.output import Json, complain, emit, stopped_by_sigterm
from headrace.errors import OptionError

if TYPE_CHECKING:
    from rich.live import Live

    from headrace.report.follow import Follower, Present
    from headrace.report.serving import PageServer

TOKEN_NAME = "HEADRACE_WATCH_TOKEN"  # noqa: S105 - the name of a variable
_OVER = ("complete", "stopped", "failed")


def watch(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or its events.jsonl.", show_default=False)],
    every: Annotated[float, typer.Option(metavar="SEC", help="Seconds between two looks, 0.1 or more.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and end.")] = False,
    serve: Annotated[
        int | None,
        typer.Option(
            "--serve",
            metavar="PORT",
            help="Serve the report's page, which goes on with the run, to browsers; 0: a free port.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="With --serve: where to listen. All but this machine itself needs a token, which is printed, or is "
            f"taken from {TOKEN_NAME}.",
            show_default="127.0.0.1",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show a run as it goes on, on one screen: how far it is, what bounds it now, its feed, what guards found.

    Rates and the verdict are of the latest half minute. It ends with the run, or by Ctrl-C, which the run does not
    notice. Where stdout is no terminal a line is printed at each look. With --serve it is the report's page in a
    browser, until Ctrl-C.
    """
    if not every >= 0.1:
        raise OptionError(f"--every must be 0.1 seconds or more: got {every}")
    if serve is not None:
        if once:
            raise OptionError("--once shows a run as it is now, --serve goes on with it: give one of them")
        _serve(run, serve, host or "127.0.0.1", every, json)
        return
    if host is not None:
        raise OptionError(f"--host is where --serve PORT listens: add it, or leave out --host {host}")
    _watch(run, every, once, json)


def _watch(run: Path, every: float, once: bool, json: bool) -> None:
    from headrace.report import verdict
    from headrace.report.follow import Follower, Present
    from headrace.report.screen import line

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


def _serve(run: Path, port: int, host: str, every: float, json: bool) -> None:
    from headrace.report.serving import PageServer

    token = os.environ.get(TOKEN_NAME) or None
    with suppress(KeyboardInterrupt), stopped_by_sigterm(), PageServer(run, port, host, token, every) as server:
        # A token that the person gave is known to them, and need not stand in a log.
        url = server.url if token is not None else server.url_with_token
        emit({"url": url, "host": host, "port": server.port, "path": str(run)}, json, url)
        complain(_on_serving(server, given=token is not None))
        server.serve_forever()


def _on_serving(server: PageServer, *, given: bool) -> str:
    if server.token is None:
        return "open the address in a browser of this machine; Ctrl-C ends it"
    how = f"add ?token= and what {TOKEN_NAME} holds" if given else "the address holds the token that lets one in"
    return f"{how}; what is shown is not encrypted on its way; Ctrl-C ends it"


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
        if follower.begins_anew():
            present.forget()
        for event in follower.new_events():
            present.take(event)
        show()
        if once or present.state in _OVER:
            return
        time.sleep(every)
