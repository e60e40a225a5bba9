"""Sinks by name, as a command line gives them: `tensorboard`, `prometheus:9464`, `mlflow:http://127.0.0.1:5000`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.errors import OptionError
from headrace.sinks.mlflow import MLflow
from headrace.sinks.prometheus import Prometheus
from headrace.sinks.sink import Sink
from headrace.sinks.tensorboard import TensorBoard
from headrace.sinks.wandb import WandB

_KINDS: dict[str, Callable[[str | None], Sink]] = {
    "tensorboard": lambda text: TensorBoard(text),
    "prometheus": lambda text: Prometheus() if text is None else Prometheus.of(text),
    "mlflow": lambda text: MLflow(text),
    "wandb": lambda text: WandB() if text is None else WandB(text),
}

FORMS = "tensorboard[:DIR], prometheus[:[HOST:]PORT], mlflow[:URI], wandb[:PROJECT]"
"""How sinks are named."""


def sinks_of(sinks: Sequence[Sink | str]) -> tuple[Sink, ...]:
    """Sinks, and names of sinks, as sinks that can work.

    Raises OptionError for a name or an option that is wrong, a library that is missing, and two of a kind: what a sink
    has of a run is kept under its name.
    """
    if isinstance(sinks, str) or not isinstance(sinks, Sequence):
        raise OptionError(f"sinks must be a list, as in sinks=['tensorboard']: got {sinks!r}")
    found = tuple(_sink(sink) for sink in sinks)
    names = [sink.name for sink in found]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"a run has one sink of a kind: got {name} {names.count(name)} times")
    for sink in found:
        sink.check()
    return found


def with_named(sinks: Sequence[Sink], named: Sequence[str]) -> tuple[Sink, ...]:
    """The sinks of a recipe and those of its command line, which take the place of others of their kind."""
    chosen = sinks_of(named)
    names = {sink.name for sink in chosen}
    return (*(sink for sink in sinks if sink.name not in names), *chosen)


def _sink(sink: Sink | str) -> Sink:
    if not isinstance(sink, str):
        if not isinstance(sink, Sink) or isinstance(sink, type):
            raise OptionError(f"a sink must be one of headrace's, or a name ({FORMS}): got {sink!r}")
        return sink
    name, colon, text = sink.partition(":")
    if name not in _KINDS or (colon and not text):
        raise OptionError(f"a sink must be one of {FORMS}: got {sink!r}")
    return _KINDS[name](text if colon else None)
