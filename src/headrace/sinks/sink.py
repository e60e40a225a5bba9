"""What a sink is: a place beside the run's own file where its events go, too.

A `Sink` is a description, like an optimizer's: it can be printed and pickled, and touches nothing. `open` gives its
`Output`, which one thread feeds (`feeding`).
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from headrace.errors import OptionError

Event: TypeAlias = dict[str, Any]
Memory: TypeAlias = dict[str, Any]
"""What a sink must know when the run is started again, such as the number it has there; a small JSON value."""

_MESSAGE_CHARS = 300
_USER = re.compile(r"(?<=://)[^/\s@]+@")


class Output(Protocol):
    """A sink at work. Any method may raise whatever the library behind it raises; it is abandoned then."""

    where: str
    """Where to look, for a person; without credentials."""
    memory: Memory

    @property
    def held(self) -> int:
        """How many of the latest events wait for later ones, and would be lost now."""

    def take(self, event: Event) -> None:
        """The next event of the run."""

    def flush(self) -> None:
        """Deliver all that is not held."""

    def close(self, outcome: str | None) -> None:
        """Deliver all and end. `outcome`: "complete", "stopped", "failed", or None where the run is not over."""

    def abandon(self) -> None:
        """Let go of ports and files, and deliver nothing: what was not delivered comes by another output."""


@runtime_checkable
class Sink(Protocol):
    """Where a run's events go beside its file: `headrace.TensorBoard()`, `Prometheus`, `MLflow` or `WandB`."""

    name: ClassVar[str]
    """As in `--sink NAME`, and of its extra."""
    keeps: ClassVar[bool]
    """Whether it keeps what it was given: it is then given a run's whole history, once."""

    def check(self) -> None:
        """Raise OptionError where it cannot work, as for want of its library."""

    def target(self, run_dir: Path) -> str:
        """Where it goes, without credentials: what is remembered of another target does not hold."""

    def open(self, run_dir: Path, memory: Memory) -> Output:
        """Begin, or go on as `memory` says."""


def told(error: Exception) -> str:
    """An error of a library as one line, without the user and password of a URL in it."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {_USER.sub('***@', text)}"[:_MESSAGE_CHARS]


def need(module: str, sink: str) -> None:
    """Raise OptionError where a sink's library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise OptionError(f"the sink {sink} needs {module}: pip install 'headrace[{sink}]'")


def check_every(every_sec: float, sink: str) -> None:
    """Raise OptionError for a distance between points that is none."""
    if not 0 <= every_sec < float("inf"):
        raise OptionError(f"every_sec of the sink {sink} must be 0 or more seconds: got {every_sec}")
