"""What the guards decide from one step to the next, where steps are read late, or a run goes on amid spikes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import headrace as hr
from headrace.errors import TrainingError
from headrace.train.guards import Watch
from headrace.train.snapshot import Learner

GUARDS = hr.Guards(spike_window=16, spike_steps=3, snapshot_every=15)


class Watched:
    """A watch over a model whose first weight is the number of its steps, and what it found."""

    def __init__(self):
        model = nn.Linear(1, 1)
        world = SimpleNamespace(rank=1, size=1, device=torch.device("cpu"), gather=lambda value: [value])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.weight, self.found = model.weight, []
        self.watch = Watch(GUARDS, Learner(SimpleNamespace(model=model), optimizer, world, {}), self.found.append)

    def make(self, step):
        with torch.no_grad():
            self.weight.fill_(step)

    def read(self, step, loss=1.0, overflowed=False):
        totals = SimpleNamespace(loss=loss, grad_norm=None, finite=math.isfinite(loss))
        self.watch.read(step, totals, loss, {}, overflowed)

    def steps(self, first, last, loss=1.0):
        for step in range(first, last + 1):
            self.make(step)
            self.read(step, loss)
            self.watch.act(step)

    def found_by(self, guard):
        return [finding.step for finding in self.found if finding.guard == guard]


@pytest.fixture
def watched():
    watched = Watched()
    watched.make(0)
    watched.watch.begin(0, None)
    watched.steps(1, 30)
    return watched


def test_a_step_that_was_made_before_the_run_goes_back_is_judged_before_too(watched):
    watched.steps(31, 42, loss=1.0)
    watched.steps(43, 44, loss=99.0)
    watched.make(46)  # on a GPU: made before the spike of step 45 is read
    watched.read(45, 99.0)
    assert watched.watch.settles(46)
    watched.read(46, 99.0)
    assert watched.watch.act(46)
    assert watched.found_by("spike") == [43, 44, 45, 46]
    assert watched.weight.item() == 30
    assert not watched.watch.in_doubt
    assert "the spike began in step 43" in watched.found[-1].detail


def test_a_run_that_goes_on_amid_spikes_begins_its_row_anew(watched):
    watched.steps(31, 32, loss=99.0)
    assert watched.watch.in_doubt
    state, watched.found = watched.watch.state_dict(), []
    later = Watched()
    later.make(32)
    later.watch.begin(32, state)
    assert not later.watch.in_doubt
    later.steps(33, 35, loss=99.0)
    assert later.found_by("rollback") == [35]
    assert later.weight.item() == 32
    assert not later.watch.in_doubt


def test_a_step_whose_scaled_gradients_overflow_is_neither_good_nor_bad(watched):
    watched.steps(31, 34, loss=math.nan)
    factor = watched.watch.factor
    watched.read(35, overflowed=True)
    assert watched.watch.factor == factor
    assert watched.found_by("finite") == [31, 32, 33, 34]
    with pytest.raises(TrainingError, match="fewer than 5 steps in a row may be bad"):
        watched.read(36, math.nan)


def test_a_step_whose_scaled_gradients_overflow_ends_no_row_of_spikes(watched):
    watched.steps(31, 32, loss=99.0)
    watched.read(33, overflowed=True)
    assert watched.watch.in_doubt
    watched.steps(34, 34, loss=99.0)
    assert watched.found_by("rollback") == [34]
    assert "the spike began in step 31" in watched.found[-1].detail
