"""fp16 learns what fp32 does; a step whose gradients overflow is left out, on every rank, and is on record."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from memory_loader import MemoryLoader
from problems import fields, largest_difference, layered, trainer, weights
from processes import HERE, run_ranks
from scaled import SCENARIOS, trapped

from headrace.errors import OptionError, TrainingError
from headrace.train.loss_scale import LossScale, Scaled
from headrace.train.world import World

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module", params=[("dp", 1), ("dp", 2), ("fsdp", 2)], ids=lambda param: f"{param[0]}-{param[1]}")
def ranks(request, tmp_path_factory):
    """What each scenario gave on every rank of some processes, scenario -> values by rank."""
    mesh, size = request.param
    folder = tmp_path_factory.mktemp("scaled")
    run_ranks(size, [HERE / "scaled.py", *SCENARIOS, "--out", folder], TEST_MESH=mesh)
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(size)]
        for name in SCENARIOS
    }


def test_parts_clipping_and_unequal_batches_give_nearly_what_fp32_gives(ranks):
    model = layered()
    loader = MemoryLoader(fields(), 24, epochs=None, keep=lambda row: row % 5 != 1 and row % 8 != 2)
    result = trainer(model, loader, steps=12, micro_batch_size=2, clip_grad_norm=0.5).fit()
    for found in ranks["whole"]:
        assert {value.dtype for value in found["weights"].values()} == {torch.float32}
        assert 0 < largest_difference(found["weights"], weights(model)) <= 1e-3
        assert found["loss"] == pytest.approx(result.loss, abs=5e-3)
        assert found["overflowed"] == 0


def test_a_step_that_overflows_on_one_rank_is_left_out_on_all(ranks):
    for found in ranks["overflowing"]:
        models, overflowed = zip(*found["after"], strict=True)
        moved = [largest_difference(one, other) > 0 for one, other in pairwise(models)]
        assert moved == [True, False, False, True, True]
        assert overflowed == (0, 0, 1, 1, 0, 0)
        assert largest_difference(models[-1], ranks["overflowing"][0]["after"][-1][0]) == 0


def test_the_record_has_the_scale_and_what_overflowed(ranks):
    steps = ranks["overflowing"][0]["steps"]
    assert [step["overflowed"] for step in steps] == [False, False, True, True, False, False]
    assert [math.log2(step["loss_scale"]) for step in steps] == [16, 16, 16, 15, 14, 14]
    assert ["grad_norm" in step for step in steps] == [True, True, False, False, True, True]


def test_resume_is_bit_for_bit_and_keeps_the_scale(ranks):
    for found in ranks["resumed"]:
        assert largest_difference(*found["weights"]) == 0
        straight, broken = found["scales"]
        assert straight == broken == 3 * [2.0**16] + 9 * [2.0**15]


def test_gradients_and_factors_are_those_of_torchs_scaler():
    """Over overflows, one that ends a streak just before its end, and a streak to its end."""
    ours, theirs = LossScale(ALONE, replicas=True), torch.amp.GradScaler("cpu")
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([param], lr=0.0)
    theirs.scale(torch.ones(()))
    for number in range(4_100):
        gradient = torch.tensor([1.0, float("nan") if number in (2, 1_900) else -3.0, 0.5])
        param.grad, own = gradient.clone(), gradient.clone()
        theirs.unscale_(optimizer)
        theirs.step(optimizer)
        assert ours.unscale([own]).factor == theirs.get_scale()
        assert torch.equal(own.nan_to_num(), param.grad.nan_to_num())
        theirs.update()
    assert ours.factor == theirs.get_scale() == 2.0**15


def test_gradients_that_overflow_at_every_scale_end_the_run():
    with pytest.raises(TrainingError, match=r"must fit into fp16.*precision='bf16'"):
        trainer(trapped(at=range(100)), precision="fp16").fit(steps=100)


def test_a_run_of_another_precision_goes_on_in_fp16(tmp_path):
    trainer(run_dir=tmp_path).fit(steps=2)
    result = trainer(run_dir=tmp_path, precision="fp16").fit(steps=4)
    assert (result.resumed_from.name, result.overflowed_steps) == ("step-00000002", 0)


def test_nothing_overflows_where_there_is_no_gradient():
    assert LossScale(ALONE, replicas=True).unscale([]) == Scaled(2.0**16, overflowed=False)


def test_feedback_of_compression_and_a_scale_that_changes_do_not_go_together():
    import headrace as hr

    with pytest.raises(OptionError, match=r"PowerSgd.*whose scale would change.*got precision='fp16'"):
        trainer(precision="fp16", compression=hr.power_sgd())
