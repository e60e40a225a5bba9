from __future__ import annotations

import math

import pytest
import torch
from memory_loader import MemoryLoader
from problems import cross_entropy, fields, largest_difference, network, trainer, weights
from processes import HERE, run_ranks
from scenarios import SCENARIOS
from torch import nn

import headrace as hr
from headrace.errors import OptionError, StateError
from headrace.telemetry import read_events
from headrace.train.average import Average

HELD_OUT = fields(50, seed=2)


def held_out():
    return MemoryLoader(HELD_OUT, 12, shuffle=False, drop_last=False)


def inside(made):
    with made.averaged():
        return weights(made.model)


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.5, 3)])
def test_each_update_keeps_its_decay_which_rises_to_the_one_given(decay, every):
    made = trainer(ema=hr.ema(decay, every=every))
    expected = weights(made.model)
    for step in range(1, 15):
        made.fit(steps=step)
        if step % every == 0:
            updates = step // every - 1
            keep = min(decay, (1 + updates) / (10 + updates))
            expected = {name: keep * old + (1 - keep) * made.model.state_dict()[name] for name, old in expected.items()}
        assert largest_difference(inside(made), expected) <= 1e-6


def test_evaluations_are_of_the_averaged_weights_and_training_goes_on_with_its_own(tmp_path):
    plain = network()
    trainer(plain).fit(steps=8)
    made = trainer(network(), evaluate=held_out(), evaluate_every=0.25, ema=0.9, run_dir=tmp_path)
    result = made.fit(steps=8)
    assert largest_difference(weights(made.model), weights(plain)) == 0
    with made.averaged():
        found = cross_entropy(made.model(torch.from_numpy(HELD_OUT["x"])), {"cls": torch.from_numpy(HELD_OUT["cls"])})
    assert result.loss == pytest.approx(found.item(), rel=1e-5)
    start = next(read_events(tmp_path / "events.jsonl"))
    assert start["config"]["ema"] == "EMA(decay=0.9, every=1, evaluate=True)"


def test_evaluations_may_stay_with_the_trained_weights():
    made = trainer(evaluate=held_out(), ema=hr.ema(0.9, evaluate=False))
    plain = trainer(evaluate=held_out())
    assert made.fit(steps=8).loss == plain.fit(steps=8).loss


def test_a_step_that_is_skipped_does_not_move_it():
    """The batches of the second epoch hold no sample, so the optimizer makes no step."""
    loader = MemoryLoader(fields(24), 12, epochs=None, shuffle=False, keep=lambda row: row < 12)
    made = trainer(loader=loader, ema=0.9)
    made.fit(steps=1)
    before = inside(made)
    made.fit(steps=2)
    assert largest_difference(before, inside(made)) == 0
    made.fit(steps=3)
    assert largest_difference(before, inside(made)) > 0


def test_frozen_parameters_and_masks_are_the_models_own():
    model = nn.Sequential(network(), nn.BatchNorm1d(3))
    model[0][0].requires_grad_(False)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    made = trainer(model, ema=0.9)
    made.fit(steps=6)
    own, averaged = weights(model), inside(made)
    same = {name for name in own if torch.equal(own[name], averaged[name])}
    assert same == {"0.0.weight", "0.0.bias", "mask", "1.num_batches_tracked"}


def test_weights_in_bf16_are_averaged_in_fp32():
    """Each update adds less than bf16 can tell from nothing; together they are much."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = Average(model, optimizer, hr.ema(0.999))
    for _ in range(3000):
        optimizer.step()
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        optimizer.step()
    with average.in_place():
        assert model.weight.dtype == torch.bfloat16
        assert 1.2 < model.weight.item() < 1.3


@pytest.mark.parametrize("make", [lambda: hr.ema(1.0), lambda: hr.ema(0), lambda: trainer(ema=1.5)])
def test_values_out_of_range_are_refused(make):
    with pytest.raises(OptionError, match="the decay of an average must be above 0 and below 1: got"):
        make()
    with pytest.raises(OptionError, match="every must be at least 1 step: got 0"):
        hr.ema(every=0)


def test_without_an_average_there_is_none_to_put_in_place():
    made = trainer()
    made.fit(steps=1)
    with pytest.raises(OptionError, match=r"set Trainer\(ema=0.999\), say"):
        made.averaged()


def test_a_step_on_averaged_weights_is_refused():
    made = trainer(ema=0.9)
    made.fit(steps=1)
    with made.averaged(), pytest.raises(OptionError, match=r"leave `averaged\(\)` before a step"):
        made.fit(steps=2)
    with made.averaged(), pytest.raises(OptionError, match="in place already"), made.averaged():
        pass


def test_resume_is_bit_for_bit_on_one_process(tmp_path):
    found = SCENARIOS["average_resumed"](tmp_path)
    assert found["resumed_from"] == "step-00000012"
    assert largest_difference(found["straight"], found["broken"]) == 0


def test_an_average_may_begin_in_a_run_that_had_none_and_is_not_lost(tmp_path):
    trainer(run_dir=tmp_path).fit(steps=3)
    made = trainer(network(seed=8), run_dir=tmp_path, ema=0.9)
    made.fit(steps=3)
    assert largest_difference(inside(made), weights(made.model)) == 0
    made.fit(steps=4)
    with pytest.raises(StateError, match="an average of the weights, and this run keeps none: set ema"):
        trainer(run_dir=tmp_path).fit(steps=5)


@pytest.fixture(scope="module", params=["dp", "fsdp"])
def ranks(request, tmp_path_factory):
    """What the scenarios gave on each of two ranks, and the folder they left."""
    folder = tmp_path_factory.mktemp("ranks")
    names = ["averaged", "average_called", "average_resumed", "average_begun"]
    run_ranks(2, [HERE / "scenarios.py", *names, "--out", folder], TEST_MESH=request.param)
    return folder, lambda name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)]


def test_the_average_on_two_processes_is_that_of_one(ranks, tmp_path):
    alone = SCENARIOS["averaged"](tmp_path)
    for found in ranks[1]("averaged"):
        assert largest_difference(found["averaged"], alone["averaged"]) <= 1e-6
        assert largest_difference(found["trained"], found["before"]) == 0
        assert largest_difference(found["trained"], found["averaged"]) > 1e-4
        assert found["loss"] == pytest.approx(alone["loss"], abs=1e-6)


def test_training_goes_on_with_its_own_weights_after_the_averaged_ones_were_called(ranks):
    for found in ranks[1]("average_called"):
        assert largest_difference(found["called"], found["straight"]) == 0


def test_resume_is_bit_for_bit_on_two_processes(ranks):
    one, other = ranks[1]("average_resumed")
    for found in (one, other):
        assert found["resumed_from"] == "step-00000012"
        assert largest_difference(found["straight"], found["broken"]) == 0
    assert largest_difference(one["straight"], other["straight"]) == 0


def test_the_average_goes_to_other_meshes(ranks, tmp_path):
    folder, _ = ranks
    alone = SCENARIOS["average_continued"](folder)
    for mesh in ("dp", "fsdp"):
        run_ranks(2, [HERE / "scenarios.py", "average_continued", "--out", folder], TEST_MESH=mesh)
        for found in ranks[1]("average_continued"):
            assert largest_difference(found, alone) == 0
