"""Progress bars for long work: on a terminal a bar on stderr, elsewhere silence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]
"""`advance(n=1, note="")`: n more items are done; the note, if given, replaces the text at the bar's end."""


def silent(n: int = 1, note: str = "") -> None:
    """The `advance` of a bar that is not shown."""


@contextmanager
def progress(title: str, total: int | None, unit: str = "") -> Iterator[Advance]:
    """Show a bar named `title` for `total` items (None: unknown) while the block runs; yields `advance`.

    Silent, and free of rich's import, when stderr is not a terminal. `advance` may be called from several threads.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bar.advance(task, n)
            if note:
                bar.update(task, note=note)

        yield advance
