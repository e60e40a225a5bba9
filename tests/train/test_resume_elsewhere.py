"""A run goes on at another number of processes, and on another mesh, than it began with."""

from __future__ import annotations

import pytest
import torch
from problems import largest_difference, network, trainer, weights
from processes import HERE, run_ranks
from scenarios import SCENARIOS

import headrace as hr

OPTIMIZER = hr.adamw(0.01)


def run(name, mesh, size, folder):
    if size > 1:
        run_ranks(size, [HERE / "scenarios.py", name, "--out", folder], TEST_MESH=mesh)
    else:
        torch.save(SCENARIOS[name](folder), folder / f"{name}-0.pt")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (("dp", 2), ("dp", 1)),
        (("dp", 1), ("dp", 2)),
        (("fsdp", 4), ("fsdp", 2)),
        (("fsdp", 2), ("dp=2,fsdp=2", 4)),
        (("dp", 2), ("fsdp", 2)),
        (("fsdp", 2), ("dp", 1)),
        (("tp", 2), ("fsdp", 2)),
        (("fsdp=2,tp=2", 4), ("tp", 2)),
        (("dp", 1), ("dp=2,tp=2", 4)),
    ],
)
def test_ten_steps_here_and_ten_there_are_twenty(first, then, tmp_path):
    straight = network()
    trainer(straight, steps=20, optimizer=OPTIMIZER).fit()
    run("begun", *first, tmp_path)
    run("continued", *then, tmp_path)
    found = torch.load(tmp_path / "continued-0.pt", weights_only=False)
    assert found["resumed_from"] == "step-00000010"
    assert largest_difference(found["weights"], weights(straight)) <= 1e-5
