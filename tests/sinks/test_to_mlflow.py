"""MLflow's own client finds there what the run wrote. All in a database in the test's folder; nothing goes out."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version

import pytest
from run_files import RunFile, write_run

import headrace as hr
from headrace.errors import StorageError
from headrace.sinks import send
from headrace.telemetry import read_events
from waiting import running, wait_for

pytest.importorskip("mlflow", reason="needs MLflow: pip install 'headrace[mlflow]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # its own, and those of what it imports


@pytest.fixture(autouse=True)
def nothing_is_told_to_mlflow(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that has its tables."""
    import mlflow

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    mlflow.MlflowClient(uri).search_experiments()
    return uri


def runs_in(store, experiment):
    from mlflow import MlflowClient

    client = MlflowClient(store)
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def written(run_dir, kind):
    return [event for event in read_events(run_dir / "events.jsonl") if event["event"] == kind]


def test_every_step_of_a_run_is_there_with_its_time_and_the_config(tmp_path, store):
    run = write_run(tmp_path / "digits-1", 60, crash_at=None)
    (sent,) = send(run, [hr.MLflow(store, experiment="whole", every_sec=0)])
    client, (found,) = runs_in(store, "whole")
    assert sent.where == f"run {found.info.run_id} of whole at {store}"
    assert (found.info.run_name, found.info.status) == ("digits-1", "FINISHED")
    steps = written(run, "step")
    losses = client.get_metric_history(found.info.run_id, "train/loss")
    assert [one.step for one in losses] == [step["step"] for step in steps]
    assert [one.value for one in losses] == pytest.approx([step["loss"] for step in steps])
    assert [one.timestamp for one in losses] == [round(step["time"] * 1000) for step in steps]
    assert found.data.params["config/settings/batch_size"] == "128"
    assert found.data.params["precision"] == "bf16"
    assert found.data.tags["torch_version"] == "2.13.0"
    evaluations = client.get_metric_history(found.info.run_id, "evaluate/accuracy")
    assert [one.value for one in evaluations] == [event["metrics"]["accuracy"] for event in written(run, "evaluate")]


def test_a_run_that_is_gone_on_with_is_one_run_there(tmp_path, store):
    sink = hr.MLflow(store, experiment="resumed", every_sec=0)
    run = RunFile(tmp_path)
    run.start(config={"lr": 0.1})
    run.step(1, 0.5)
    run.write("stop", step=1, reason="sigterm")
    send(tmp_path, [sink])
    _, (found,) = runs_in(store, "resumed")
    assert found.info.status == "KILLED"
    run.start(step=1, attempt=1, config={"lr": 0.2})  # MLflow's parameters cannot change
    run.step(2, 0.25)
    send(tmp_path, [sink])
    client, (found,) = runs_in(store, "resumed")
    assert found.info.status == "RUNNING"
    assert found.data.params["config/lr"] == "0.1"
    assert [one.value for one in client.get_metric_history(found.info.run_id, "train/loss")] == [0.5, 0.25]


def test_a_monitor_feeds_it_under_names_that_mlflow_takes(tmp_path, store):
    with (
        suppress(MemoryError),
        hr.Monitor(tmp_path, sinks=[hr.MLflow(store, experiment="live", every_sec=0)]) as monitor,
    ):
        for _ in range(3):
            with monitor.step():
                monitor.note(loss=0.5, **{"f1 (größer, besser)": 0.25})
        raise MemoryError
    client, (found,) = runs_in(store, "live")
    assert found.info.status == "FAILED"
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) == 3
    assert found.data.metrics["train/f1 _gr__er_ besser_"] == 0.25


def test_more_than_one_request_takes_is_several(tmp_path, store):
    run = RunFile(tmp_path)
    run.start(config={f"setting {number}": number for number in range(150)})
    run.write("evaluate", step=1, metrics={f"metric {number}": float(number) for number in range(1500)})
    send(tmp_path, [hr.MLflow(store, experiment="large")])
    _, (found,) = runs_in(store, "large")
    assert found.data.metrics["evaluate/metric 1499"] == 1499
    assert found.data.params["config/setting 149"] == "149"


def test_a_store_that_cannot_be_used_is_one_line(tmp_path):
    RunFile(tmp_path).start()
    with pytest.raises(StorageError, match=r"the sink mlflow .* did not take the events of .*: ") as caught:
        send(tmp_path, ["mlflow:nothing://there"])
    assert "\n" not in str(caught.value)


def test_a_run_goes_on_without_a_server_that_is_not_there(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with hr.Monitor(tmp_path, sinks=["mlflow:http://127.0.0.1:9"]) as monitor, monitor.step():
        pass
    assert [event["state"] for event in written(tmp_path, "sink")] == ["failed"]
    assert "the sink mlflow (headrace at http://127.0.0.1:9) failed, and the run goes on without it" in caplog.text
    assert len(written(tmp_path, "step")) == 1


@contextmanager
def server(folder, port):
    """MLflow's own tracking server."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--artifacts-destination", str(folder)]
    with (
        open(folder / "server.log", "wb") as log,
        running(command, cwd=folder, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too


def has_server():
    with suppress(PackageNotFoundError):
        return bool(version("mlflow"))
    return False


@pytest.mark.skipif(not has_server(), reason="needs MLflow's server: pip install mlflow")
def test_a_tracking_server_that_comes_late_gets_everything(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    run = tmp_path / "run"
    with hr.Monitor(run, sinks=[hr.MLflow(url, every_sec=0)]) as monitor:
        with monitor.step():
            monitor.note(loss=0.5)
        wait_for(lambda: [event["state"] for event in written(run, "sink")] == ["failed"], "the sink fails")
        with server(tmp_path, port):
            wait_for(lambda: [event["state"] for event in written(run, "sink")] == ["failed", "on"], "it is back")
            with monitor.step():
                monitor.note(loss=0.25)
            monitor.close()
            client, (found,) = runs_in(url, "headrace")
            assert found.info.status == "FINISHED"
            history = client.get_metric_history(found.info.run_id, "train/loss")
            assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.25)]
    assert capfd.readouterr().out == ""
