from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from problems import largest_difference, network, trainer, weights
from processes import HERE

import headrace as hr
from headrace.errors import CheckpointError, OptionError, StateError, TargetError
from headrace.telemetry import read_events
from headrace.train.checkpoint import read_state


def checkpoints(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def run(run_dir, steps=20, model=None, resume="auto", **options):
    options = {"optimizer": hr.adamw(0.01), "checkpoint_every": 5, **options}
    return trainer(model, run_dir=run_dir, **options).fit(steps=steps, resume=resume)


def test_the_newest_are_kept_and_complete(tmp_path):
    run(tmp_path, keep_checkpoints=3)
    assert checkpoints(tmp_path) == ["step-00000010", "step-00000015", "step-00000020"]
    state = json.loads((tmp_path / "checkpoints/step-00000020/state.json").read_text())
    assert (state["version"], state["step"], state["samples"]) == (2, 20, 240)


def test_a_half_written_checkpoint_is_never_loaded_and_is_cleaned_up(tmp_path):
    run(tmp_path, steps=10)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000010", folder / "step-00000015.partial")
    shutil.copytree(folder / "step-00000010", folder / "step-00000016")
    (folder / "step-00000016/state.json").unlink()
    assert run(tmp_path, steps=12).resumed_from == folder / "step-00000010"
    assert "step-00000015.partial" not in checkpoints(tmp_path)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
    "flipped at the end": lambda path: flip(path, -1),
    "missing": lambda path: path.unlink(),
}
REASONS = "should have|differs from its checksum|is missing|malformed"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_with_the_reason(tmp_path, caplog, name, damage):
    """Whichever of its files it is. Without `state.json` it is none, and nothing is said."""
    run(tmp_path, steps=10)
    DAMAGE[damage](tmp_path / "checkpoints/step-00000010" / name)
    with caplog.at_level(logging.WARNING, "headrace.train"):
        result = run(tmp_path, steps=12)
    assert result.resumed_from == tmp_path / "checkpoints/step-00000005"
    assert bool(re.search(f"checkpoint passed over: .*({REASONS})", caplog.text)) != (
        (name, damage) == ("state.json", "missing")
    )


def test_every_changed_byte_of_the_state_is_found(tmp_path):
    run(tmp_path, steps=2)
    path = tmp_path / "checkpoints/step-00000002/state.json"
    straight = read_state(path.parent)
    for at in range(path.stat().st_size):
        flip(path, at)
        with suppress(CheckpointError):
            assert read_state(path.parent) == straight, "only what means nothing may be taken"
        flip(path, at)


def test_when_none_can_be_read_the_run_does_not_begin_anew_without_a_word(tmp_path):
    run(tmp_path, steps=3)
    (tmp_path / "checkpoints/step-00000003/.metadata").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        run(tmp_path)


def test_a_checkpoint_of_another_model_or_optimizer_is_refused_by_name(tmp_path):
    run(tmp_path, steps=3)
    with pytest.raises(StateError, match=r"'0\.bias' is \(16,\) in it and \(5,\) here"):
        run(tmp_path, model=torch.nn.Sequential(torch.nn.Linear(6, 5)))
    with pytest.raises(StateError, match="trained with the optimizer AdamW, this run has SGD"):
        run(tmp_path, optimizer=hr.sgd(0.1))


def test_never_refuses_a_folder_that_holds_a_run(tmp_path):
    run(tmp_path, steps=3)
    with pytest.raises(OptionError, match="holds a run: choose another folder"):
        run(tmp_path, resume="never")
    assert run(tmp_path / "other", steps=3, resume="never").resumed_from is None


def test_a_path_names_a_checkpoint_or_a_run(tmp_path):
    run(tmp_path / "a", steps=10)
    older = tmp_path / "a/checkpoints/step-00000005"
    assert run(tmp_path / "b", steps=12, resume=older).resumed_from == older
    assert run(tmp_path / "c", steps=12, resume=tmp_path / "a").resumed_from == tmp_path / "a/checkpoints/step-00000010"
    with pytest.raises(CheckpointError, match=r"resume must be .*nothing is neither a checkpoint nor"):
        run(tmp_path / "d", resume=tmp_path / "nothing")


def test_a_run_folder_serves_one_run_at_a_time(tmp_path):
    def loss(output, batch):
        with pytest.raises(TargetError, match="in use by a run that is under way"):
            run(tmp_path)
        return torch.nn.functional.cross_entropy(output, batch["cls"])

    trainer(loss=loss, run_dir=tmp_path).fit(steps=1)


def test_a_finished_run_started_again_does_nothing_more(tmp_path):
    model = network()
    run(tmp_path, model=model)
    again = network(seed=9)
    result = run(tmp_path, model=again)
    assert (result.steps, result.samples) == (20, 240)
    assert largest_difference(weights(model), weights(again)) == 0


FULL_DISK = """
import resource, sys
sys.path.insert(0, {here!r})
from problems import network, trainer
first = trainer(network(), run_dir={run_dir!r}, checkpoint_every=2)
first.fit(steps=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
first.fit(steps=4)
"""


def test_a_full_disk_is_one_clear_error_and_leaves_earlier_checkpoints(tmp_path):
    """A limit on file sizes stands in for a full disk: writes fail part-way in the same manner."""
    code = FULL_DISK.format(here=str(HERE), run_dir=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "CheckpointError: the checkpoint of step 4 could not be written" in last
    assert "earlier checkpoints are intact" in last
    assert checkpoints(tmp_path) == ["step-00000002"]
    assert run(tmp_path, steps=3, optimizer=hr.sgd(0.1)).resumed_from.name == "step-00000002"


def test_events_tell_of_every_checkpoint_and_of_the_resume(tmp_path):
    run(tmp_path, steps=5)
    run(tmp_path, steps=7)
    events = list(read_events(tmp_path / "events.jsonl"))
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [5, 7]
    starts = [event for event in events if event["event"] == "start"]
    assert [start["step"] for start in starts] == [0, 5]
    assert starts[1]["resumed_from"].endswith("step-00000005")
    assert starts[1]["pids"] == [os.getpid()]


def test_after_an_error_a_trainer_goes_back_to_its_checkpoint_or_refuses(tmp_path):
    failing = iter(range(1, 99))

    def loss(output, batch):
        if next(failing) in (8, 16):
            raise ValueError("gone")
        return torch.nn.functional.cross_entropy(output, batch["cls"])

    model, straight = network(), network()
    made = trainer(model, loss=loss, run_dir=tmp_path, checkpoint_every=5)
    with pytest.raises(ValueError, match="gone"):
        made.fit(steps=10)
    assert made.fit(steps=10).resumed_from.name == "step-00000005"
    trainer(straight).fit(steps=10)
    assert largest_difference(weights(model), weights(straight)) == 0
    homeless = trainer(loss=loss)
    with pytest.raises(ValueError, match="gone"):
        homeless.fit(steps=10)
    with pytest.raises(OptionError, match="no checkpoint to go back to: make a new one"):
        homeless.fit(steps=10)


def test_later_checkpoints_of_a_history_that_is_left_are_set_aside(tmp_path):
    run(tmp_path, steps=10)
    run(tmp_path, steps=6, resume=tmp_path / "checkpoints/step-00000005")
    assert checkpoints(tmp_path) == ["step-00000005", "step-00000006", "step-00000010.set-aside"]
