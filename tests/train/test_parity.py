"""Several processes train the model that one trains, on any mesh, whatever cuts the global batch into unequal parts."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from problems import largest_difference
from processes import HERE, run_ranks
from scenarios import SCENARIOS

TOLERANCE = 1e-6
ELSEWHERE = {"begun", "continued", "started"}
NAMES = sorted(name for name in SCENARIOS.keys() - ELSEWHERE if not name.startswith("average"))


MESHES = {
    "dp": 2,
    "fsdp": 2,
    "tp": 2,
    "pp": 2,
    "dp=2,fsdp=2": 4,
    "dp=2,tp=2": 4,
    "fsdp=2,tp=2": 4,
    "dp=2,pp=2": 4,
    "fsdp=2,pp=2": 4,
    "tp=2,pp=2": 4,
}
NOT_IN_A_PIPELINE = {"resumed"}


@pytest.fixture(scope="module", params=MESHES)
def ranks(request, tmp_path_factory):
    """What each scenario gave on every rank of some gloo processes, scenario -> values by rank."""
    mesh, size = request.param, MESHES[request.param]
    folder = tmp_path_factory.mktemp("ranks")
    names = [name for name in NAMES if "pp" not in mesh or name not in NOT_IN_A_PIPELINE]
    run_ranks(size, [HERE / "scenarios.py", *names, "--out", folder], TEST_MESH=mesh)
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(size)] for name in names
    }


def of(ranks, name):
    """What a scenario gave on every rank."""
    if name in NOT_IN_A_PIPELINE and name not in ranks:
        pytest.skip("not in a pipeline")
    return ranks[name]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a scenario gives on this process, which every mesh is held to."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield cache(lambda name: SCENARIOS[name](tmp_path_factory.mktemp(name)))
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["clipped_momentum", "accumulated", "by_hand", "recomputed", "in_sequence"])
def test_weights_are_those_of_one_process(name, ranks, alone):
    rank_0, *others = of(ranks, name)
    assert {largest_difference(rank_0, other) for other in others} == {0}
    assert largest_difference(rank_0, alone(name)) <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "in_blocks",
        "unequal_parts",
        "token_weighted",
        "filtered",
        "padded",
        "empty_on_one_rank",
        "nothing_at_all",
    ],
)
def test_weights_losses_and_counts_are_those_of_one_process(name, ranks, alone):
    expected = alone(name)
    for found in ranks[name]:
        assert largest_difference(found["weights"], expected["weights"]) <= TOLERANCE
        assert without_weights(found) == pytest.approx(without_weights(expected), abs=TOLERANCE)


def without_weights(found):
    return {key: value for key, value in found.items() if key != "weights"}


def test_every_optimizer_makes_the_steps_of_one_process(ranks, alone):
    expected = alone("by_every_optimizer")
    for found in ranks["by_every_optimizer"]:
        # In a pipeline one is refused.
        assert largest_difference(found, {name: expected[name] for name in found}) <= 2e-6


def test_bf16_trains_nearly_the_same(ranks, alone):
    expected = alone("in_bf16")
    for found in ranks["in_bf16"]:
        assert {value.dtype for value in found["weights"].values()} == {torch.float32}
        assert largest_difference(found["weights"], expected["weights"]) <= 3e-3
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-2)


def test_accumulation_gives_the_gradients_of_the_whole_batch(alone):
    whole, parts = alone("plain")["weights"], alone("accumulated")
    assert largest_difference(whole, parts) <= TOLERANCE


def test_only_real_samples_are_counted(ranks):
    assert ranks["padded"][0]["samples"] == 2 * 77
    assert ranks["empty_on_one_rank"][0]["samples"] == 2 * (8 + 8)
    assert ranks["nothing_at_all"][0]["samples"] == 2 * 8


def test_evaluation_is_exact_over_ranks_with_padding(ranks, alone):
    expected = alone("evaluated")
    rank_0, *others = ranks["evaluated"]
    assert all(rank_0 == other for other in others)
    assert rank_0 == pytest.approx(expected, abs=TOLERANCE)
    assert rank_0["accuracy"] * 53 == pytest.approx(round(rank_0["accuracy"] * 53), abs=1e-9)


def test_resume_is_bit_for_bit_on_several_processes(ranks):
    """With dropout, batch norm, AdamW, a schedule, and draws from every global generator."""
    for found in of(ranks, "resumed"):
        assert found["failed"] == "the power is off"
        assert found["resumed_from"] == "step-00000012"
        assert largest_difference(found["straight"], found["broken"]) == 0


def test_resume_is_bit_for_bit_on_one_process(alone):
    found = alone("resumed")
    assert found["resumed_from"] == "step-00000012"
    assert largest_difference(found["straight"], found["broken"]) == 0


def test_a_second_fit_goes_on_where_the_first_ended(ranks, alone):
    for name in ("resumed_with_momentum", "in_two_runs"):
        for straight, in_two in (*ranks[name], alone(name)):
            assert largest_difference(straight, in_two) == 0


def test_gradients_that_are_not_finite_name_step_and_rank(ranks):
    for found in ranks["exploding"]:
        assert found["message"].startswith("the gradients of step 3 must be finite: got ")
        assert f"the loss of rank {len(ranks['exploding']) - 1} is not finite" in found["message"]


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(ranks, tmp_path):
    for found in ranks["exploding_without_clipping"]:
        assert found["message"].startswith("the loss of step 3 must be finite: got inf")
    assert "the loss of step 3 must be finite" in SCENARIOS["exploding_without_clipping"](tmp_path)["message"]
    assert max(path.name for path in (tmp_path / "exploded/checkpoints").iterdir()) == "step-00000002"


def test_a_parameter_that_takes_no_part_is_named_at_the_first_step(ranks):
    for found in ranks["unused"]:
        assert (
            "every parameter must take part in the loss: spare.weight, spare.bias got no gradient" in found["message"]
        )
