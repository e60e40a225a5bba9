"""`mesh="auto"`: replicas where they fit, else the fewest processes that hold one model together."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import OPTIMIZERS, layered, trainer
from torch import nn

from headrace.errors import OptionError
from headrace.train.optimizers import state_bytes_per_value
from headrace.train.parallel.auto import SHARE_OF_STATES, Need, auto_mesh, needed
from headrace.train.parallel.mesh import Mesh

GIB = 1 << 30


@pytest.mark.parametrize(
    ("gib", "world_size", "local_size", "mesh"),
    [
        (1, 8, 4, Mesh(dp=8)),
        (6, 8, 4, Mesh(dp=8)),
        (10, 8, 4, Mesh(dp=2, fsdp=4)),
        (10, 4, 4, Mesh(fsdp=4)),
        (40, 8, 4, Mesh(fsdp=8)),
        (10, 6, 4, Mesh(fsdp=6)),
    ],
)
def test_the_simplest_mesh_with_room_is_taken(gib, world_size, local_size, mesh):
    found, why = auto_mesh(Need(gib * GIB, 0, 0), 10 * GIB, world_size, local_size)
    assert found == mesh
    assert str(mesh) in why
    assert f"{gib} GiB (model {gib} GiB, gradients 0 B, optimizer 0 B)" in why


@given(st.integers(1, 10**13), st.integers(10**6, 10**12), st.integers(1, 64), st.integers(1, 8))
def test_a_mesh_that_is_taken_has_room_and_uses_all_processes(bytes_needed, room, world_size, local_size):
    try:
        mesh, _ = auto_mesh(Need(bytes_needed, 0, 0), room, world_size, local_size)
    except OptionError:
        assert bytes_needed / world_size > SHARE_OF_STATES * room
    else:
        assert mesh.dp * mesh.fsdp == world_size
        assert bytes_needed / mesh.fsdp <= SHARE_OF_STATES * room


def test_no_room_says_what_is_missing():
    with pytest.raises(OptionError, match=r"takes 100 GiB .*, and 2 processes have 10 GiB each, .*; start more"):
        auto_mesh(Need(100 * GIB, 0, 0), 10 * GIB, 2, 2)


def test_frozen_parameters_need_no_gradients():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False), nn.BatchNorm1d(10))
    model[0].requires_grad_(False)
    found = needed(model, 8.0)
    assert found.gradients == 4 * (100 + 20)
    assert found.optimizer == 8 * (100 + 20)
    assert found.model == 4 * (200 + 20 + 20) + 8


@pytest.mark.parametrize(("name", "size"), [("sgd", 4), ("adamw", 8), ("lamb", 8), ("adafactor", 0), ("muon", 4)])
def test_what_an_optimizer_keeps_is_measured(name, size):
    # Muon has AdamW's two values for the first and last layers of the small model.
    assert state_bytes_per_value(OPTIMIZERS[name]) == pytest.approx(size, abs=3 if name == "muon" else 0.2)
    assert state_bytes_per_value(lambda params: torch.optim.SGD(params, lr=0.1)) == 0


def test_a_run_says_why(caplog):
    with caplog.at_level(logging.WARNING, "headrace.train"):
        trainer(layered(), steps=1, mesh="auto").fit()
    assert "mesh='dp=1': the model with gradients and optimizer takes" in caplog.text
