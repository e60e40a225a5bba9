"""Sinks by name and by description, and what cannot work."""

from __future__ import annotations

import subprocess
import sys

import pytest

import headrace as hr
from headrace.errors import OptionError, StorageError
from headrace.sinks import send, sinks_of, with_named
from headrace.telemetry import EventWriter


@pytest.fixture(autouse=True)
def all_installed(monkeypatch):
    """Names mean the same whatever is installed."""
    monkeypatch.setattr("headrace.sinks.sink.importlib.util.find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("name", "sink"),
    [
        ("tensorboard", hr.TensorBoard()),
        ("tensorboard:boards/one", hr.TensorBoard("boards/one")),
        ("prometheus", hr.Prometheus(9464, "127.0.0.1")),
        ("prometheus:9000", hr.Prometheus(9000)),
        ("prometheus:0.0.0.0:9000", hr.Prometheus(9000, "0.0.0.0")),
        ("prometheus:[::1]:9000", hr.Prometheus(9000, "::1")),
        ("mlflow", hr.MLflow()),
        ("mlflow:http://127.0.0.1:5000", hr.MLflow("http://127.0.0.1:5000")),
        ("mlflow:sqlite:///a.db", hr.MLflow("sqlite:///a.db")),
        ("wandb", hr.WandB()),
        ("wandb:digits", hr.WandB(project="digits")),
    ],
)
def test_a_name_is_a_sink(name, sink):
    assert sinks_of([name]) == (sink,)
    assert sinks_of([sink]) == (sink,)


FORMS = r"tensorboard\[:DIR\], prometheus\[:\[HOST:\]PORT\], mlflow\[:URI\], wandb\[:PROJECT\]"


@pytest.mark.parametrize(
    ("sinks", "message"),
    [
        ("tensorboard", r"sinks must be a list, as in sinks=\['tensorboard'\]: got 'tensorboard'"),
        (["grafana"], f"a sink must be one of {FORMS}: got 'grafana'"),
        (["tensorboard:"], "a sink must be one of .*: got 'tensorboard:'"),
        ([hr.TensorBoard], r"a sink must be one of headrace's, or a name \(.*\): got <class"),
        ([None], "a sink must be one of headrace's, or a name .*: got None"),
        (["prometheus:x"], "prometheus:PORT or prometheus:HOST:PORT: got 'x'"),
        (["prometheus:99999"], "port of the sink prometheus must be 0 to 65535: got 99999"),
        ([hr.Prometheus(host="")], "host of the sink prometheus must be localhost or an IP address, .*: got ''"),
        (["wandb", hr.WandB(mode="online")], "a run has one sink of a kind: got wandb 2 times"),
        ([hr.WandB(mode="later")], "mode of the sink wandb must be one of offline, online: got 'later'"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(sinks, message):
    with pytest.raises(OptionError, match=message) as caught:
        sinks_of(sinks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:hunter2@127.0.0.1:5000",
        "https://hunter2@a.b",
        "mysql://me:hunter2@a.b/c",
        "postgresql://h/db?user=x&password=hunter2",
        "postgresql://h/db?sslpassword=hunter2",
        "https://a.b/?access_token=hunter2",
    ],
)
def test_a_secret_in_a_uri_is_refused_and_not_printed(uri):
    with pytest.raises(OptionError, match="must have no password or token: got one; set MLFLOW_TRACKING_US") as caught:
        sinks_of([f"mlflow:{uri}"])
    assert "hunter2" not in str(caught.value)


def test_options_of_a_store_are_no_part_of_where_a_run_goes(tmp_path):
    assert hr.MLflow("postgresql://h/db?sslkey=/k").target(tmp_path) == "headrace at postgresql://h/db"


def test_the_command_lines_sinks_take_the_place_of_those_of_their_kind():
    recipes = (hr.TensorBoard("here"), hr.Prometheus(1))
    assert with_named(recipes, ["prometheus:2", "wandb"]) == (hr.TensorBoard("here"), hr.Prometheus(2), hr.WandB())
    assert with_named(recipes, []) == recipes


@pytest.mark.parametrize(
    ("name", "module"),
    [("tensorboard",) * 2, ("prometheus", "prometheus_client"), ("mlflow",) * 2, ("wandb",) * 2],
)
def test_a_library_that_is_missing_is_named_with_its_extra(name, module, monkeypatch):
    monkeypatch.setattr("headrace.sinks.sink.importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError) as caught:
        sinks_of([name])
    assert str(caught.value) == f"the sink {name} needs {module}: pip install 'headrace[{name}]'"


def test_naming_sinks_imports_none_of_their_libraries():
    code = (
        "import sys; from headrace.sinks import TensorBoard, Prometheus, MLflow, WandB, Sinks, send;"
        "sys.exit(bool({'tensorboard', 'prometheus_client', 'mlflow', 'wandb', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_cannot_be_sent_is_refused(tmp_path):
    EventWriter(tmp_path / "events.jsonl").close()
    with pytest.raises(OptionError, match="send needs a sink"):
        send(tmp_path, [])
    with pytest.raises(OptionError, match="the sink prometheus keeps nothing that a run could be sent to"):
        send(tmp_path, ["prometheus"])
    with pytest.raises(StorageError, match=r"no events of a run at .*nowhere: give the folder of a run"):
        send(tmp_path / "nowhere", ["tensorboard"])
