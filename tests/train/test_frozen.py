from __future__ import annotations

import json

import pytest
import torch
from problems import largest_difference, network, trainer, weights

import headrace as hr
from headrace.errors import StateError


def half_frozen(seed=3):
    """The first layer is not trained; it is always the same, the last is the seed's."""
    model = network(seed=seed)
    model[0].load_state_dict(network(seed=1)[0].state_dict())
    model[0].requires_grad_(False)
    return model


def run(run_dir, model, steps, **options):
    made = trainer(model, run_dir=run_dir, optimizer=hr.adamw(0.01), **{"save_frozen": False, **options})
    return made.fit(steps=steps)


def test_a_run_goes_on_without_what_was_frozen_in_its_checkpoints(tmp_path):
    straight = half_frozen()
    run(tmp_path / "straight", straight, 8)
    run(tmp_path / "broken", half_frozen(), 4)
    again = half_frozen(seed=9)
    run(tmp_path / "broken", again, 8)
    assert largest_difference(weights(straight), weights(again)) == 0
    newest = tmp_path / "broken/checkpoints/step-00000008"
    names = torch.distributed.checkpoint.FileSystemReader(newest).read_metadata().state_dict_metadata
    assert {name for name in names if name.startswith("model.")} == {"model.3.weight", "model.3.bias"}
    assert len(json.loads((newest / "state.json").read_text())["frozen"]) == 32


def test_other_frozen_parameters_are_refused(tmp_path):
    run(tmp_path, half_frozen(), 4)
    other = half_frozen()
    other[0].bias.data[0] += 1e-6
    with pytest.raises(StateError, match=r"leaves out the frozen parameters.*start from the weights"):
        run(tmp_path, other, 8)


@pytest.mark.parametrize("first", [True, False])
def test_both_ways_of_saving_do_not_mix(tmp_path, first):
    run(tmp_path, half_frozen(), 4, save_frozen=first)
    with pytest.raises(StateError, match=f"written with save_frozen={first}, and this run has save_frozen={not first}"):
        run(tmp_path, half_frozen(), 8, save_frozen=not first)
