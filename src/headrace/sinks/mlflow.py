"""MLflow: a run there for a run here, in a local database or on a tracking server, by MLflow's own client.

The client is asked for by name, and MLflow's notion of an active run is left alone, so that a script may use MLflow
beside this for things of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from headrace.errors import OptionError
from headrace.sinks.history import History
from headrace.sinks.points import Point
from headrace.sinks.sink import Event, Memory, Output, check_every, need
from headrace.telemetry.secrets import cleaned, is_secret

_MOST_METRICS, _MOST_PARAMS, _PARAM_CHARS = 1000, 100, 500  # of one request, by MLflow's own limits
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]", re.ASCII)
_SILENCE = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
_STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


@dataclass(frozen=True, slots=True)
class MLflow:
    """A run in MLflow, with the config as parameters. Needs `pip install 'headrace[mlflow]'`.

    Args:
        uri: of the tracking server or store, as "http://127.0.0.1:5000" or "sqlite:///mlflow.db"; None: what MLflow
            itself is told (MLFLOW_TRACKING_URI, else its default). A password goes into MLFLOW_TRACKING_PASSWORD.
        experiment: its name there; made if it is not there.
        run_name: None: the name of the run's folder.
        every_sec: steps that end within so many seconds become one point, their mean; 0: every step is a point.
    """

    name: ClassVar[str] = "mlflow"
    keeps: ClassVar[bool] = True

    uri: str | None = None
    experiment: str = "headrace"
    run_name: str | None = None
    every_sec: float = 1.0

    def check(self) -> None:
        """Raise OptionError for a URI with a password, a wrong `every_sec`, or without the library."""
        if self.uri is not None and _has_secret(self.uri):
            raise OptionError(
                "the URI of the sink mlflow must have no password or token: got one; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI for a database"
            )
        check_every(self.every_sec, self.name)
        need("mlflow", self.name)

    def target(self, run_dir: Path) -> str:
        """The store, without the options of its URI, and the experiment."""
        store = (self.uri or "the tracking URI that MLflow is told").partition("?")[0]
        return f"{self.experiment} at {store}"

    def open(self, run_dir: Path, memory: Memory) -> Output:
        """Begin a run, or go on with the one in memory."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        if "run_id" in memory:
            client.update_run(memory["run_id"], status="RUNNING")
        else:
            name = self.run_name or run_dir.resolve().name
            memory["run_id"] = client.create_run(_experiment_id(client, self.experiment), run_name=name).info.run_id
        where = f"run {memory['run_id']} of {self.target(run_dir)}"
        return _TrackedRun(client, where, self.every_sec, memory)


class _TrackedRun(History):
    def __init__(self, client: Any, where: str, every_sec: float, memory: Memory) -> None:
        super().__init__(where, every_sec, memory)
        self._client = client
        self._run_id = memory["run_id"]

    def started(self, event: Event) -> None:
        """Parameters of a run cannot change there, so they are those of its first start."""
        from mlflow.entities import Param

        if "told" in self.memory:
            return
        told = {"config": event.get("config"), "mesh": event.get("mesh"), "precision": event.get("precision")}
        params = (Param(name, text) for name, text in _flat("", cleaned(told)))
        while some := list(islice(params, _MOST_PARAMS)):
            self._client.log_batch(self._run_id, params=some)
        for name, version in (event.get("versions") or {}).items():
            self._client.set_tag(self._run_id, f"{_name(name)}_version", str(version))
        self.memory["told"] = True

    def deliver(self, points: Sequence[Point]) -> None:
        """As many in one request as MLflow takes."""
        from mlflow.entities import Metric

        metrics = (
            Metric(_name(name), value, round(point.time * 1000), point.step)
            for point in points
            for name, value in point.values.items()
        )
        while some := list(islice(metrics, _MOST_METRICS)):
            self._client.log_batch(self._run_id, metrics=some)

    def end(self, outcome: str | None) -> None:
        """Finished, killed (a run that was stopped), or failed; a run that is not over stays running."""
        if outcome is not None:
            with _silent():
                self._client.set_terminated(self._run_id, _STATUS[outcome])

    def free(self) -> None:
        """Nothing is open between two requests."""


def _has_secret(uri: str) -> bool:
    parts = urlsplit(uri)
    if parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None):
        return True
    return any(is_secret(name, value) for name, value in parse_qsl(parts.query))


@contextmanager
def _silent() -> Iterator[None]:
    """MLflow prints where to look to stdout, which is for a command's results; the record has it."""
    if _SILENCE in os.environ:
        yield
        return
    os.environ[_SILENCE] = "true"
    try:
        yield
    finally:
        os.environ.pop(_SILENCE, None)


def _experiment_id(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run has made it just now, or else the next line says what is wrong
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for inner, part in value.items():
            yield from _flat(f"{name}/{inner}" if name else str(inner), part)
    elif value is not None:
        yield _name(name), str(value)[:_PARAM_CHARS]


def _name(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)
