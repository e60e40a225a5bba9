"""The average of the weights, and checkpoints without frozen parameters, where processes have stages of the model."""

from __future__ import annotations

import pytest
import torch
from problems import largest_difference
from processes import HERE, run_ranks
from staged import STAGED

import headrace as hr
from headrace.train.metadata import TensorReader
from headrace.train.tensor_files import stored_tensors

MESHES = {"pp": 2, "dp=2,pp=2": 4}
NAMES = ["average", "average_in_two_runs", "frozen_in_two_runs", "frozen_otherwise", "begun"]


@pytest.fixture(scope="module", params=MESHES)
def ranks(request, tmp_path_factory):
    """The folder that the scenarios left, and of each what it gave on every rank."""
    folder, mesh = tmp_path_factory.mktemp("staged"), request.param
    run_ranks(MESHES[mesh], [HERE / "staged.py", *NAMES, "--out", folder], TEST_MESH=mesh)
    return folder, mesh, lambda name: given(folder, name, MESHES[mesh])


def given(folder, name, size):
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(size)]


def newest(run_dir):
    return max((run_dir / "checkpoints").iterdir())


def saved_names(run_dir):
    return set(TensorReader(newest(run_dir)).read_metadata().state_dict_metadata)


def test_the_average_is_that_of_one_process(ranks, tmp_path):
    alone = STAGED["average"](tmp_path)
    for found in ranks[2]("average"):
        assert largest_difference(found["averaged"], alone["averaged"]) <= 1e-6
        assert largest_difference(found["trained"], found["before"]) == 0
        assert largest_difference(found["trained"], found["averaged"]) > 1e-4
        assert found["loss"] == pytest.approx(alone["loss"], abs=1e-6), "what is evaluated is the average"


def test_resume_is_bit_for_bit_and_the_average_is_exported(ranks):
    folder, _, of = ranks
    one, *others = of("average_in_two_runs")
    assert largest_difference(one["straight"], one["again"]) == 0
    assert largest_difference(one["own"], one["again"]) > 1e-4
    for other in others:
        assert largest_difference(one["again"], other["again"]) == 0
    done = hr.export_safetensors(folder / "in-two", folder / "averaged.safetensors")
    assert (done.averaged, done.tensors) == (True, len(one["again"]))
    written = {name: stored.read() for name, stored in stored_tensors(done.path).items()}
    assert largest_difference(written, one["again"]) == 0


def test_the_average_goes_to_other_meshes_and_comes_from_them(ranks, tmp_path):
    folder, mesh, of = ranks
    alone = STAGED["continued"](folder)
    run_ranks(MESHES[mesh], [HERE / "staged.py", "continued", "--out", folder], TEST_MESH=mesh)
    assert all(largest_difference(found, alone) == 0 for found in of("continued"))
    STAGED["begun"](tmp_path)
    run_ranks(MESHES[mesh], [HERE / "staged.py", "continued", "--out", tmp_path], TEST_MESH=mesh)
    expected = STAGED["continued"](tmp_path)
    assert all(largest_difference(found, expected) == 0 for found in given(tmp_path, "continued", MESHES[mesh]))


def test_checkpoints_leave_out_what_no_stage_trains(ranks):
    folder, _, of = ranks
    for found in of("frozen_in_two_runs"):
        assert largest_difference(found["straight"], found["again"]) == 0
    left_out = {name for name in found["again"] if name.endswith("up.weight")}
    names = saved_names(folder / "frozen-in-two")
    saved = {name.removeprefix("model.") for name in names if name.startswith("model.")}
    assert saved == found["again"].keys() - left_out
    assert not any(f"ema.{name}" in names for name in left_out)
    assert largest_difference(STAGED["frozen_elsewhere"](folder), found["straight"]) == 0


def test_other_frozen_parameters_of_any_stage_are_refused(ranks):
    for message in ranks[2]("frozen_otherwise"):
        assert "it leaves out the frozen parameters, whose xxh3-128 was" in message
