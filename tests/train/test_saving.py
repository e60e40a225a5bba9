"""Saving beside the training: what is written is the state of its step, one save at a time, and no error is lost."""

from __future__ import annotations

import json
import re
import signal
import threading

import pytest
import torch
from problems import cross_entropy, largest_difference, network, trainer, weights
from processes import HERE, ended, started_ranks

import headrace as hr
from headrace.errors import CheckpointError
from headrace.telemetry import read_events
from headrace.train.checkpoint import complete_checkpoints, read_tensors
from headrace.train.homes import LocalHome
from headrace.train.saving import Checkpoints
from headrace.train.world import World
from waiting import wait_for

WORLD = World(0, 1, torch.device("cpu"))
STATE = {"step": 1, "samples": 9, "loader": {}, "optimizer": "SGD", "numbers": {}}


class HeldHome(LocalHome):
    """A disk that takes nothing until it is let go."""

    def __init__(self, folder):
        super().__init__(folder)
        self.go = threading.Event()
        self.begun = []

    def begin(self, step):
        self.begun.append(step)
        self.go.wait()
        super().begin(step)


def steps(folder):
    return [int(place.name.removeprefix("step-")) for place in complete_checkpoints(folder)]


def saved(path):
    def room(metadata):
        entries = metadata.state_dict_metadata.items()
        return {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries}

    return read_tensors(path, room, WORLD)


def test_what_changes_while_it_is_written_is_saved_as_it_was(tmp_path):
    home = HeldHome(tmp_path)
    checkpoints = Checkpoints(home, WORLD, keep=9, is_async=True)
    tensor = torch.arange(1000.0)
    state = {**STATE, "loader": {"at": 1}}
    checkpoints.save(1, {"model.x": tensor}, state)
    tensor.fill_(-1)
    state["loader"]["at"] = 2
    assert checkpoints.finished() == []
    home.go.set()
    checkpoints.save(2, {"model.x": tensor}, state)
    checkpoints.wait()
    assert [one.step for one in checkpoints.finished()] == [1, 2]
    assert torch.equal(saved(tmp_path / "step-00000001")["model.x"], torch.arange(1000.0))
    assert torch.equal(saved(tmp_path / "step-00000002")["model.x"], torch.full((1000,), -1.0))
    assert json.loads((tmp_path / "step-00000001/state.json").read_text())["loader"] == {"at": 1}


def test_one_save_is_under_way_at_a_time(tmp_path):
    home = HeldHome(tmp_path)
    checkpoints = Checkpoints(home, WORLD, keep=9, is_async=True)
    checkpoints.save(1, {"model.x": torch.ones(3)}, STATE)
    second = threading.Thread(target=checkpoints.save, args=(2, {"model.x": torch.ones(3)}, STATE))
    second.start()
    wait_for(lambda: home.begun, "the first save")
    assert home.begun == [1], "the second waits"
    home.go.set()
    second.join()
    checkpoints.wait()
    assert home.begun == [1, 2]


def test_a_failed_save_is_raised_by_whoever_waits_for_it_and_the_next_one_is_free(tmp_path):
    home = HeldHome(tmp_path / "folder")
    checkpoints = Checkpoints(home, WORLD, keep=9, is_async=True)
    (tmp_path / "folder").write_text("in the way")
    checkpoints.save(1, {"model.x": torch.ones(3)}, STATE)
    home.go.set()
    wait_for(lambda: checkpoints.failed, "the failure")
    assert checkpoints.finished() == []
    with pytest.raises(CheckpointError, match=r"step 1 could not be written to .*; earlier checkpoints are intact"):
        checkpoints.save(2, {"model.x": torch.ones(3)}, STATE)
    (tmp_path / "folder").unlink()
    checkpoints.save(2, {"model.x": torch.ones(3)}, STATE)
    checkpoints.wait()
    assert steps(tmp_path / "folder") == [2]


def test_a_run_that_saves_asynchronously_goes_on_with_the_same_bits(tmp_path):
    straight, model = network(dropout=0.2), network(dropout=0.2)
    options = {"optimizer": hr.adamw(0.01), "checkpoint_every": 3}
    trainer(straight, **options, run_dir=tmp_path / "a").fit(steps=20)
    trainer(model, **options, run_dir=tmp_path / "b", checkpoint_async=True).fit(steps=11)
    again = network(seed=8, dropout=0.2)
    result = trainer(again, **options, run_dir=tmp_path / "b", checkpoint_async=True).fit(steps=20)
    assert result.resumed_from.name == "step-00000011"
    assert largest_difference(weights(straight), weights(again)) == 0
    events = [event for event in read_events(tmp_path / "b/events.jsonl") if event["event"] == "checkpoint"]
    assert [event["step"] for event in events] == [3, 6, 9, 11, 12, 15, 18, 20]
    assert steps(tmp_path / "b/checkpoints") == [20, 18]


def test_a_save_under_way_is_finished_where_another_error_ends_the_run(tmp_path):
    def loss(output, batch):
        if made.step == 4:
            raise ValueError("gone")
        return cross_entropy(output, batch)

    made = trainer(loss=loss, run_dir=tmp_path, checkpoint_every=4, checkpoint_async=True)
    with pytest.raises(ValueError, match="gone"):
        made.fit(steps=10)
    assert steps(tmp_path / "checkpoints") == [4]
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


@pytest.mark.parametrize(("mesh", "is_async"), [("dp", True), ("fsdp", True), ("fsdp", False)])
def test_a_full_disk_of_one_rank_is_one_message_on_all(tmp_path, mesh, is_async):
    options = {"steps": 400, "full_on": 1, "checkpoint_async": is_async}
    with started_ranks(2, [HERE / "saving_run.py", tmp_path, json.dumps(options)], TEST_MESH=mesh) as ranks:
        found = ended(ranks)
    assert [code for code, _, _ in found] == [1, 1], found
    assert found[0][1] == found[1][1]
    failed = int(re.match(r"the checkpoint of step (\d+) could not be written", found[0][1])[1])
    assert re.search(r": [^:]* \(rank 1\); earlier checkpoints are intact", found[0][1])
    assert steps(tmp_path / "checkpoints") == [failed - 2, failed - 4]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.partial")] == []


def test_sigterm_ends_all_ranks_with_the_checkpoint_of_their_last_step(tmp_path):
    options = {"steps": 1_000_000, "checkpoint_async": True}
    with started_ranks(2, [HERE / "saving_run.py", tmp_path, json.dumps(options)], TEST_MESH="fsdp") as ranks:
        wait_for(lambda: steps(tmp_path / "checkpoints"), "a checkpoint")
        ranks[1].send_signal(signal.SIGTERM)
        found = ended(ranks)
    assert [code for code, _, _ in found] == [0, 0], found
    last = int(found[0][1].split()[0])
    assert found[0][1] == found[1][1]
    assert steps(tmp_path / "checkpoints")[0] == last
