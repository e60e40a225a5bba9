"""A run that goes back has everything that goes from step to step as it was, not the weights alone."""

from __future__ import annotations

from types import SimpleNamespace

import problems as p
import torch
from torch import nn

import headrace as hr
from headrace.train.average import Average
from headrace.train.guards.snapshots import Snapshots
from headrace.train.loss_scale import LossScale
from headrace.train.parallel import Reducer
from headrace.train.snapshot import Learner

WORLD = SimpleNamespace(rank=0, size=1, device=torch.device("cpu"))


class Learning:
    """A model with all that may be kept beside it, and steps that change all of it."""

    def __init__(self):
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.average = Average(self.model, self.optimizer, hr.ema(0.9))
        self.reducer = Reducer(hr.top_k(0.5), self.model, WORLD)
        self.scale = LossScale(WORLD, replicas=True)
        place = SimpleNamespace(model=self.model)
        self.learner = Learner(place, self.optimizer, WORLD, {}, (self.reducer, self.scale), self.average)

    def step(self, value):
        self.optimizer.zero_grad()
        self.model(torch.full((1, 3), value)).sum().backward()
        self.optimizer.step()
        self.reducer._memory.keep("weight", torch.full((2, 3), value))
        self.reducer._memory.steps += 1
        self.scale.unscale([torch.tensor([value * float("inf")])])

    def state(self):
        kept = {**self.average.tensors(), **self.reducer.tensors(), **self.scale.tensors()}
        return {name: value.detach().clone() for name, value in {**self.model.state_dict(), **kept}.items()}


def same(one, other):
    return one.keys() == other.keys() and p.largest_difference(one, other) == 0


def test_average_unsent_gradients_and_loss_scale_come_back_as_often_as_the_run_goes_back():
    learning = Learning()
    learning.step(1.0)
    snapshots = Snapshots(learning.learner)
    snapshots.take(1, {})
    before = learning.state()
    for first in (20, 40):
        learning.step(1e6)
        assert not same(learning.state(), before)
        assert snapshots.go_back(first)[0] == 1
        assert same(learning.state(), before)


def test_what_was_not_yet_kept_when_the_copy_was_made_is_dropped():
    learning = Learning()
    snapshots = Snapshots(learning.learner)
    snapshots.take(0, {})
    before = learning.state()
    learning.step(1e6)
    snapshots.go_back(20)
    assert same(learning.state(), before)
