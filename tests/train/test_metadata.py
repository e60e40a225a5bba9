"""A checkpoint is data: nothing in it is run, and nothing outside it is read."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from headrace.errors import CheckpointError
from headrace.train.checkpoint import read_state, read_tensors
from headrace.train.homes import LocalHome
from headrace.train.metadata import TensorReader
from headrace.train.saving import Checkpoints
from headrace.train.world import World

WORLD = World(0, 1, torch.device("cpu"))
STATE = {"step": 3, "samples": 9, "loader": {}, "optimizer": "SGD", "numbers": {}}


@pytest.fixture
def checkpoint(tmp_path):
    tensors = {
        "a.b": torch.arange(6.0).reshape(2, 3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "one": torch.tensor(1),
    }
    checkpoints = Checkpoints(LocalHome(tmp_path), WORLD, keep=2, is_async=False)
    checkpoints.save(3, tensors, STATE)
    return checkpoints.finished()[0].path


def change(checkpoint, edit):
    file = checkpoint / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    edit(metadata)
    file.write_bytes(pickle.dumps(metadata))


def room(metadata):
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
    }


def test_tensors_come_back_as_they_were(checkpoint):
    found = read_tensors(checkpoint, room, WORLD)
    assert torch.equal(found["a.b"], torch.arange(6.0).reshape(2, 3))
    assert found["half"].dtype == torch.bfloat16
    assert read_state(checkpoint)["step"] == 3


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_pickle_that_calls_functions_is_refused_and_calls_none(checkpoint, tmp_path, hidden):
    if hidden:
        change(checkpoint, lambda metadata: setattr(metadata, "planner_data", Attack(tmp_path / "owned")))
        (tmp_path / "owned").rmdir() if (tmp_path / "owned").exists() else None
    else:
        (checkpoint / ".metadata").write_bytes(pickle.dumps(Attack(tmp_path / "owned")))
    with pytest.raises(CheckpointError, match=r"names posix\.mkdir, which has no place"):
        TensorReader(checkpoint).read_metadata()
    assert not (tmp_path / "owned").exists()


def test_pickled_objects_in_place_of_tensors_are_refused(checkpoint):
    change(checkpoint, lambda metadata: metadata.state_dict_metadata.update(half=BytesStorageMetadata()))
    with pytest.raises(CheckpointError, match="holds 'half' as a pickled object"):
        TensorReader(checkpoint).read_metadata()


@pytest.mark.parametrize("place", ["../elsewhere", "/etc/passwd", "a/b", ""])
def test_a_file_outside_the_checkpoint_is_refused(checkpoint, place):
    def edit(metadata):
        next(iter(metadata.storage_data.values())).relative_path = place

    change(checkpoint, edit)
    with pytest.raises(CheckpointError, match="not a plain file of the checkpoint"):
        TensorReader(checkpoint).read_metadata()


@pytest.mark.parametrize("data", [b"", b"nonsense", pickle.dumps({"a": 1})[:-3], pickle.dumps([1, 2])])
def test_what_is_no_table_of_contents_is_told(checkpoint, data):
    (checkpoint / ".metadata").write_bytes(data)
    with pytest.raises(CheckpointError, match="is not a checkpoint's table of contents"):
        TensorReader(Path(checkpoint)).read_metadata()
