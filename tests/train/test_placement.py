"""A model's layers over devices: the plan keeps what it promises, and a placed model learns as it would on one."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import combinations_with_replacement

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pretended import CPUS, Pretended
from problems import Block, largest_difference, layered, trainer
from torch import nn

import headrace as hr
from headrace.errors import OptionError
from headrace.train.parallel.placement import layers_of, plan_places

SIZES = st.lists(st.integers(0, 50), max_size=6)
ROOMS = st.lists(st.integers(1, 100), min_size=1, max_size=3)


def filled(sizes, rooms, places):
    """How much of its room the fullest device has taken."""
    taken = [0] * len(rooms)
    for size, place in zip(sizes, places, strict=True):
        taken[place] += size
    return max(size / room for size, room in zip(taken, rooms, strict=True))


@given(SIZES, ROOMS)
def test_layers_go_in_order_and_the_fullest_device_is_as_little_filled_as_can_be(sizes, rooms):
    """Compared with every way there is; what fits in no way is None."""
    ways = combinations_with_replacement(range(len(rooms)), len(sizes))
    best = min(filled(sizes, rooms, places) for places in ways)
    places = plan_places(sizes, rooms)
    assert (places is None) == (best > 1)
    if places is not None:
        assert places == sorted(places)
        assert filled(sizes, rooms, places) <= best + 1e-6


class Tied(nn.Module):
    """Blocks between an embedding and a head of the same weights; a scale and a table of its own, and an order of its
    own: the last block comes first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(11, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("table", torch.randn(5, 6))
        self.blocks = nn.ModuleList([Block(6) for _ in range(4)])
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens, *, shift):
        x = self.embed(tokens["ids"]) * self.scale + self.table + shift[0]
        for number in (3, 0, 1, 2):
            x = self.blocks[number](x)
        return {"logits": self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))}


def arguments():
    torch.manual_seed(4)
    return {"ids": torch.randint(0, 11, (8, 5))}, [torch.randn(5, 6)]


def learnt(model, mode=nullcontext):
    """The weights after five steps, of which `mode` looks at forward passes and losses."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(5):
        tokens, shift = arguments()
        with mode():
            logits = model(tokens, shift=shift)["logits"]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens["ids"].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


def bytes_of(model):
    return sum(layer.num_bytes(8) for layer in layers_of(model))


def on_two(model, pretended):
    """Placed on two devices of equal memory; the harness is told where tensors went."""
    room = int(bytes_of(model) * 0.65)
    hr.place_layers(model, CPUS, memory=[room, room])
    layers = layers_of(model)
    places = plan_places([layer.num_bytes(8) for layer in layers], [room, room])
    assert set(places) == {0, 1}
    for layer, place in zip(layers, places, strict=True):
        pretended.lay(layer.tensors(), CPUS[place])


def test_a_placed_model_learns_as_on_one_device():
    """No function is given tensors of two devices, though weights are tied, blocks are called out of order, and
    arguments lie in lists and dicts."""
    pretended, model = Pretended(), Tied()
    on_two(model, pretended)
    assert largest_difference(learnt(model, lambda: pretended), learnt(Tied())) == 0
    assert model.head.weight is model.embed.weight


def test_activations_move_only_where_the_device_changes():
    model, pretended = layered(), Pretended()
    on_two(model, pretended)
    with pretended:
        output = model(torch.ones(4, 6))
    assert pretended.moves == [(CPUS[0], CPUS[1]), (CPUS[1], CPUS[0])]  # to the second's first layer; back at the end
    assert pretended.of(output) == CPUS[0]
    assert torch.equal(output, layered()(torch.ones(4, 6)))


def test_layers_are_blocks_and_what_is_not_taken_apart():
    names = [layer.names for layer in layers_of(Tied())]
    assert names == [["embed", "head"], ["blocks.0"], ["blocks.1"], ["blocks.2"], ["blocks.3"], ["norm"]]


def test_modules_with_tensors_of_their_own_are_not_taken_apart():
    """Attention uses the weights of its output layer without calling it."""
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert [layer.names for layer in layers_of(model)] == [["0"], ["1"]]


def test_weights_that_join_two_layers_join_what_lies_there():
    a, b, c, d = (nn.Linear(3, 3) for _ in range(4))
    c.weight, d.bias, d.weight = a.weight, b.bias, a.weight
    assert [layer.names for layer in layers_of(nn.Sequential(a, b, c, d))] == [["0", "2", "1", "3"]]


def test_memory_is_of_weights_gradients_and_optimizer():
    layer = nn.Linear(10, 10, bias=False)
    (trained,) = layers_of(nn.Sequential(layer))
    assert trained.num_bytes(8) == 100 * (4 + 4 + 8)
    layer.weight.requires_grad_(False)
    assert trained.num_bytes(8) == 100 * 4


@pytest.mark.parametrize(
    ("devices", "options", "message"),
    [
        (["cpu"] * 2, {"memory": ["1KiB", 2000]}, r"take 13\.6 KiB, the largest \(1\.0\) 4\.08 KiB, and cpu has room"),
        (["cpu", "cpu"], {"memory": [100]}, "memory has one size a device, in a list: got 1 for 2 devices"),
        (["cpu"], {"memory": ["much"]}, "memory must be a number of bytes"),
        (["cpu", "cpu"], {"memory": "20GiB"}, "in a list: got '20GiB' for 2 devices"),
        (["gpu"], {}, "devices are torch's, such as 'cuda:0' or 'cpu': got 'gpu'"),
        ([], {}, "at least one device"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_moved(devices, options, message):
    model = layered()
    with pytest.raises(OptionError, match=message):
        hr.place_layers(model, devices, **options)
    assert not model._forward_pre_hooks
    hr.place_layers(model, ["cpu"])


def test_a_model_without_values_or_placed_before_is_refused():
    with torch.device("meta"), pytest.raises(OptionError, match=r"0\.weight lies on device meta"):
        hr.place_layers(nn.Sequential(nn.Linear(2, 2)), ["cpu"])
    model = hr.place_layers(layered(), ["cpu", "cpu"])
    with pytest.raises(OptionError, match="placed by place_layers"):
        hr.place_layers(model, ["cpu"])


def test_the_trainer_and_parallelize_refuse_a_placed_model():
    """They would move all of it to one device."""
    model = hr.place_layers(layered(), ["cpu", "cpu"])
    with pytest.raises(OptionError, match="placed by place_layers"):
        trainer(model).fit(steps=1)
    with pytest.raises(OptionError, match="placed by place_layers"):
        hr.parallelize(model, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
def test_a_machine_without_gpus_is_told_to_name_devices():
    with pytest.raises(OptionError, match="this torch sees no GPU; name them"):
        hr.place_layers(layered())
