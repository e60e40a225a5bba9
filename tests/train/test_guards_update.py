"""A step that was not finite leaves optimizer and model as they were, where the answer lies on the device too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headrace.train.average import EMA, Average
from headrace.train.guards import RunningStatistics, step_if

OPTIMIZERS = {
    "fused adamw": lambda params: torch.optim.AdamW(params, fused=True),
    "fused sgd": lambda params: torch.optim.SGD(params, momentum=0.9, fused=True),
    "adagrad, which takes no mask": torch.optim.Adagrad,
}


def learn(model, optimizer, value, finite):
    optimizer.zero_grad()
    model(torch.full((1, 3), value)).sum().backward()
    step_if(optimizer, finite)


def state(model, optimizer):
    kept = [value for param in model.parameters() for value in optimizer.state[param].values()]
    return [value.clone() for value in (*model.parameters(), *kept) if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("on_device", [False, True])
def test_a_bad_step_changes_neither_parameters_nor_state_and_the_next_good_one_does(name, on_device):
    answer = torch.tensor if on_device else bool
    model = nn.Linear(3, 3)
    optimizer = OPTIMIZERS[name](model.parameters())
    learn(model, optimizer, 1.0, answer(True))
    before = state(model, optimizer)
    learn(model, optimizer, float("nan"), answer(False))
    assert all(map(torch.equal, before, state(model, optimizer)))
    learn(model, optimizer, 1.0, answer(True))
    assert not any(map(torch.equal, before, state(model, optimizer)))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("answer", [bool, torch.tensor])
def test_an_average_does_not_move_with_a_step_that_is_left_out(name, answer):
    model = nn.Linear(3, 3)
    optimizer = OPTIMIZERS[name](model.parameters())
    average = Average(model, optimizer, EMA(0.9))
    learn(model, optimizer, 1.0, answer(True))
    before = {name: value.clone() for name, value in average.tensors().items()}
    learn(model, optimizer, float("nan"), answer(False))
    assert all(torch.equal(before[name], value) for name, value in average.tensors().items())
    learn(model, optimizer, 1.0, answer(True))
    assert not any(torch.equal(before[name], value) for name, value in average.tensors().items())


@pytest.mark.parametrize("answer", [bool, torch.tensor])
def test_running_statistics_forget_a_bad_step_only(answer):
    model = nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2))
    statistics = RunningStatistics(model)
    statistics.keep()
    model(torch.full((3, 2), float("nan")))
    statistics.settle(answer(False))
    assert model[0].running_mean.tolist() == [0, 0]
    statistics.keep()
    model(torch.ones(3, 2))
    statistics.settle(answer(True))
    assert model[0].running_mean.tolist() == pytest.approx([0.1, 0.1])
