from __future__ import annotations

import pytest
import torch
from torch import nn

import headrace as hr
from headrace.errors import OptionError


def test_they_are_what_torch_gives_for_the_same_values():
    for ours, theirs in (
        (hr.adamw(0.1, weight_decay=0.2), torch.optim.AdamW),
        (hr.sgd(0.1, momentum=0.9, nesterov=True), torch.optim.SGD),
    ):
        optimizer = ours(nn.Linear(2, 2).parameters())
        assert type(optimizer) is theirs
        group = optimizer.param_groups[0]
        assert all(group[name] == value for name, value in vars_of(ours).items())


def vars_of(description):
    return {name: getattr(description, name) for name in type(description).__dataclass_fields__}


def test_they_print_as_they_are_written():
    assert repr(hr.sgd(0.1)) == "SGD(lr=0.1, momentum=0.0, weight_decay=0.0, nesterov=False)"
    assert hr.adamw() == hr.adamw(lr=3e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: hr.sgd(0),
        lambda: hr.sgd(float("nan")),
        lambda: hr.sgd(0.1, momentum=1.0),
        lambda: hr.sgd(0.1, nesterov=True),
        lambda: hr.adamw(betas=(0.9, 1.0)),
        lambda: hr.adamw(weight_decay=-1),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(OptionError):
        make()
