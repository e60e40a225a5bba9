"""Activations that are made again: the same training in less memory."""

from __future__ import annotations

import problems as p
import pytest
import torch
from torch import nn

from headrace.errors import OptionError
from headrace.train.parallel.recompute import recompute_activations


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.drop = p.Block(7), nn.Dropout(0.3)

    def forward(self, x):
        return self.drop(self.block(x))


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 7), nn.Sequential(Dropping(), Dropping(), Dropping()), nn.Linear(7, 3))


@pytest.mark.parametrize("how", ["full", "selective"])
def test_training_is_bit_for_bit_the_same_with_dropout(how):
    found = []
    for activation_checkpointing in (None, how):
        model = network()
        p.trainer(model, steps=10, activation_checkpointing=activation_checkpointing).fit()
        found.append(p.weights(model))
    assert p.largest_difference(*found) == 0


def kept_bytes(how):
    """What the graph of a forward pass keeps, beside parameters."""
    model = p.layered()
    recompute_activations(model, how)
    params = {param.untyped_storage().data_ptr() for param in model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in params:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.randn(512, 6)).sum()
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_less_is_kept():
    assert kept_bytes("full") < 0.6 * kept_bytes(None)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(OptionError, match=r"repeated blocks.*Sequential has none"):
        p.trainer(steps=1, activation_checkpointing="full").fit()


def test_another_way_is_refused():
    with pytest.raises(OptionError, match="must be one of None, full, selective: got 'some'"):
        p.trainer(activation_checkpointing="some")


@pytest.mark.filterwarnings("default")  # torch warns of what its own code does
def test_compiled_blocks_train_the_same():
    found = []
    for compiled in (False, True):
        model = p.layered()
        p.trainer(model, steps=5, compile=compiled).fit()
        found.append(p.weights(model))
    assert p.largest_difference(*found) <= 1e-6
