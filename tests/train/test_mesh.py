from __future__ import annotations

import pytest
from processes import HERE, run_ranks
from torch import nn

from headrace.errors import OptionError
from headrace.train.parallel import Mesh, parse_mesh
from headrace.train.parallel.blocks import repeated_blocks


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("dp", {"dp": None}),
        ("dp=2", {"dp": 2}),
        (" dp = 16 ", {"dp": 16}),
        ("fsdp", {"fsdp": None}),
        ("dp=2,fsdp", {"dp": 2, "fsdp": None}),
        ("fsdp=4, dp=2", {"fsdp": 4, "dp": 2}),
        ("dp=2,fsdp=2,tp=2,pp=2", {"dp": 2, "fsdp": 2, "tp": 2, "pp": 2}),
        ("auto", {}),
    ],
)
def test_a_mesh_is_axes_and_sizes(text, axes):
    assert parse_mesh(text) == axes


@pytest.mark.parametrize("text", ["", "dp=0", "dp=-1", "dp=2,dp=2", "dp=2,ep=2", "2", "dp=two", "auto=2", "dp;fsdp"])
def test_what_is_no_mesh_is_refused(text):
    with pytest.raises(OptionError, match=r"mesh must be axis=size pairs of dp .*, fsdp .*, tp .* and pp .*got"):
        parse_mesh(text)


def test_two_axes_without_a_size_are_refused():
    with pytest.raises(OptionError, match=r"may leave out the size of one axis.*got 'dp,fsdp'"):
        parse_mesh("dp,fsdp")


@pytest.mark.parametrize(
    ("text", "world_size", "mesh"),
    [
        ("dp", 3, Mesh(dp=3)),
        ("fsdp", 4, Mesh(fsdp=4)),
        ("dp=2,fsdp=2", 4, Mesh(2, 2)),
        ("dp,fsdp=2", 8, Mesh(4, 2)),
        ("fsdp", 1, Mesh()),
        ("dp,tp=2,pp=2", 8, Mesh(dp=2, tp=2, pp=2)),
    ],
)
def test_an_axis_without_a_size_has_what_the_others_leave(text, world_size, mesh):
    assert Mesh.of(text, world_size) == mesh


@pytest.mark.parametrize(
    ("text", "world_size", "way_out"),
    [
        ("dp=2", 3, "say mesh='dp', or start 2 processes"),
        ("dp=2,fsdp=2", 3, "start 4 processes"),
        ("dp,fsdp=2", 3, "start a multiple of 2 processes"),
        ("fsdp=4", 8, "say mesh='fsdp', or start 4 processes"),
    ],
)
def test_the_sizes_must_multiply_to_the_number_of_processes(text, world_size, way_out):
    with pytest.raises(OptionError, match=f"got mesh='{text}' on {world_size}; {way_out}"):
        Mesh.of(text, world_size)


def test_those_that_compute_together_have_one_share_of_the_data():
    """Ranks count fastest along tp, then fsdp, dp and pp."""
    mesh = Mesh(dp=2, fsdp=2, tp=2, pp=2)
    shares = [mesh.data_rank(rank) for rank in range(16)]
    assert [share.rank for share in shares] == [0, 0, 1, 1, 2, 2, 3, 3] * 2
    assert {share.world_size for share in shares} == {4}
    assert str(mesh) == "dp=2,fsdp=2,tp=2,pp=2"


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.tower = nn.Sequential(Block(), nn.ReLU(), Block(), nn.Linear(4, 4))
        self.single = Block()


def test_blocks_are_the_outermost_modules_that_repeat():
    model = Model()
    assert repeated_blocks(model) == [*model.layers, model.tower[0], model.tower[2]]


def test_a_module_that_shares_a_parameter_with_others_is_no_block():
    model = Model()
    model.layers[0].inner[0].weight = model.layers[2].inner[0].weight
    assert repeated_blocks(model) == [model.tower[0], model.tower[2]]


def test_a_plain_network_has_no_blocks():
    assert repeated_blocks(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))) == []


def test_collectives_along_an_axis_wait_as_long_as_those_of_all():
    run_ranks(4, [HERE / "mesh_groups.py"])
