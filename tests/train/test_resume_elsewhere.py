"""A run goes on at another number of processes than it began with."""

from __future__ import annotations

import pytest
import torch
from problems import largest_difference, network, trainer, weights
from processes import HERE, run_ranks
from scenarios import SCENARIOS

import headrace as hr

OPTIMIZER = hr.adamw(0.01)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_ten_steps_here_and_ten_there_are_twenty(first, then, tmp_path):
    straight = network()
    trainer(straight, steps=20, optimizer=OPTIMIZER).fit()
    if first == 1:
        SCENARIOS["begun"](tmp_path)
        run_ranks(2, [HERE / "scenarios.py", "continued", "--out", tmp_path])
    else:
        run_ranks(2, [HERE / "scenarios.py", "begun", "--out", tmp_path])
        torch.save(SCENARIOS["continued"](tmp_path), tmp_path / "continued-0.pt")
    found = torch.load(tmp_path / "continued-0.pt", weights_only=False)
    assert found["resumed_from"] == "step-00000010"
    assert largest_difference(found["weights"], weights(straight)) <= 1e-5
