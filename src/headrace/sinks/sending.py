"""Sends a run that is over, or under way, to sinks: what they do not have of it yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import HeadraceError, OptionError, StorageError
from headrace.sinks.feeding import Feed
from headrace.sinks.naming import sinks_of
from headrace.sinks.sink import Sink, told
from headrace.telemetry import FILE_NAME


@dataclass(frozen=True, slots=True)
class Sent:
    """What a sink was sent."""

    sink: str
    where: str
    """Where to look, without credentials."""
    events: int
    """Events of the run that it did not have."""


def send(run: str | Path, sinks: Sequence[Sink | str]) -> list[Sent]:
    """Send the events of a run, given its folder, to sinks: those that they do not have yet.

    So a run made without sinks is sent as a whole, and one whose sink failed is made complete. `sinks` as for the
    Trainer; an endpoint (Prometheus) keeps nothing and is refused. Raises OptionError for sinks that cannot work,
    StorageError where there is no run or a sink does not take the events; those before it have them then.
    """
    run_dir = Path(run)
    chosen = sinks_of(sinks)
    if not chosen:
        raise OptionError("send needs a sink, as in sinks=['tensorboard']: got none")
    for sink in chosen:
        if not sink.keeps:
            raise OptionError(f"the sink {sink.name} keeps nothing that a run could be sent to: it shows a running one")
    if not (run_dir / FILE_NAME).is_file():
        raise StorageError(f"no events of a run at {run_dir}: give the folder of a run, which holds {FILE_NAME}")
    return [_send(run_dir, sink) for sink in chosen]


def _send(run_dir: Path, sink: Sink) -> Sent:
    feed = Feed(sink, run_dir)
    try:
        feed.finish(None)
    except HeadraceError:
        raise
    except Exception as err:  # the libraries behind sinks raise anything
        raise StorageError(
            f"the sink {sink.name} ({feed.where}) did not take the events of {run_dir}: {told(err)}"
        ) from err
    return Sent(sink.name, feed.where, feed.delivered)
