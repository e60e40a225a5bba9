"""The Trainer's sinks: fed while it fits, one attempt after another, and never in its way."""

from __future__ import annotations

import problems as p
import pytest

import headrace as hr
from headrace.errors import OptionError
from headrace.telemetry import read_events

pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install 'headrace[tensorboard]'")


def scalars(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(one.step, pytest.approx(one.value)) for one in found.Scalars(tag)]


def written(run_dir, kind, name):
    events = read_events(run_dir / "events.jsonl")
    return [(event["step"], event[name]) for event in events if event["event"] == kind]


def test_every_fit_goes_on_in_the_same_curves(tmp_path):
    trainer = p.trainer(
        evaluate=p.MemoryLoader(p.fields(24, seed=2), 12, shuffle=False),
        run_dir=tmp_path,
        sinks=[hr.TensorBoard(every_sec=0)],
    )
    trainer.fit(steps=3)
    trainer.fit(steps=6)
    p.trainer(run_dir=tmp_path, sinks=[hr.TensorBoard(every_sec=0)]).fit(steps=8)
    losses = written(tmp_path, "step", "loss")
    assert [step for step, _ in losses] == list(range(1, 9))
    assert scalars(tmp_path / "tensorboard", "train/loss") == losses
    assert scalars(tmp_path / "tensorboard", "evaluate/loss") == written(tmp_path, "evaluate", "loss")


def test_losses_are_the_same_with_sinks_and_without(tmp_path):
    for name, sinks in (("with", ["tensorboard"]), ("without", [])):
        p.trainer(run_dir=tmp_path / name, sinks=sinks).fit(steps=5)
    assert written(tmp_path / "with", "step", "loss") == written(tmp_path / "without", "step", "loss")


def test_a_sink_that_fails_is_one_line_and_the_run_is_complete(tmp_path, caplog):
    (tmp_path / "file").touch()
    result = p.trainer(run_dir=tmp_path / "r", sinks=[hr.TensorBoard(tmp_path / "file")]).fit(steps=4)
    assert (result.steps, result.stopped) == (4, None)
    assert [state for _, state in states(tmp_path / "r")] == ["failed"]
    lines = [record.getMessage() for record in caplog.records if record.name == "headrace.sinks"]
    assert len([line for line in lines if "failed, and the run goes on without it: FileExistsError" in line]) == 1


def states(run_dir):
    return [(event["sink"], event["state"]) for event in read_events(run_dir / "events.jsonl") if "state" in event]


def test_sinks_need_a_folder_that_they_are_fed_from(tmp_path):
    with pytest.raises(OptionError, match="sinks are fed from what the run writes into its folder: set run_dir"):
        p.trainer(sinks=["tensorboard"]).fit(steps=1)
    with pytest.raises(OptionError, match=r"a sink must be one of .*: got 'board'"):
        p.trainer(sinks=["board"])
