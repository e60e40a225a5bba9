"""Which layers are cut for tensor parallel processes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from problems import Block, layered, network, trainer
from torch import nn

from headrace.errors import OptionError
from headrace.train.parallel.mlps import MLP, find_mlps
from headrace.train.parallel.tensor import resolve_plan


class Gated(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Normed(nn.Module):
    """A norm in between looks at all outputs together."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


class Seen(nn.Module):
    """The hidden values have another use."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        hidden = self.up(x).relu()
        return self.down(hidden), hidden


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.down(self.up(x) * x)


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.down(self.up(self.up(x)).relu())


class Branching(nn.Module):
    """Nothing that follows stand-ins can follow this."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(self.up(x)) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (Block(4), [MLP(("up",), "down")]),
        (Gated(4, 8), [MLP(("gate", "up"), "down")]),
        (nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(), nn.Linear(8, 4)), [MLP(("0",), "3")]),
        (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), [MLP(("0",), "2")]),
        (nn.Sequential(nn.Linear(4, 8), nn.Softmax(-1), nn.Linear(8, 4)), []),
        (Normed(), []),
        (Seen(), []),
        (Residual(), []),
        (Twice(), []),
        (Branching(), []),
        (nn.Linear(4, 4), []),
    ],
)
def test_only_what_is_changed_element_by_element_is_an_mlp(module, found):
    assert find_mlps(module) == found


def test_a_forward_pass_that_is_not_the_class_s_is_not_trusted():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    module.forward = lambda x: x
    assert find_mlps(module) == []


def test_mlps_of_all_blocks_are_cut_and_nothing_else():
    plan = resolve_plan(layered(), None, 2)
    assert plan == {
        f"1.{n}.{name}": style for n in range(3) for name, style in (("up", "colwise"), ("down", "rowwise"))
    }


def test_stars_stand_for_one_part_of_a_name():
    plan = resolve_plan(layered(), {"1.*.up": "colwise", "1.*.down": "rowwise", "3": "colwise_gather"}, 1)
    assert list(plan) == ["1.0.up", "1.1.up", "1.2.up", "1.0.down", "1.1.down", "1.2.down", "3"]


@pytest.mark.parametrize(
    ("model", "plan", "size", "message"),
    [
        (layered(), {"1.*.middle": "colwise"}, 2, r"'1\.\*\.middle' is none of 0, 1, 1\.0"),
        (layered(), {"3": "colwise"}, 2, r"tp=2 must divide what it cuts: 3\.weight has shape \(3, 7\)"),
        (
            layered(),
            {"1.*.norm": "rowwise"},
            1,
            r"'rowwise' is for linear layers and embeddings: 1\.0\.norm is a Layer",
        ),
        (layered(), {"3": "diagonal"}, 2, r"colwise, rowwise, .*: got 'diagonal' for '3'"),
        (layered(), None, 3, r"no linear layers .* that can be cut: tp=3 does not divide 1\.0\.down \(16 inputs\)"),
        (nn.Linear(4, 4), None, 2, "tensor parallel needs a plan"),
    ],
)
def test_what_does_not_fit_is_refused(model, plan, size, message):
    with pytest.raises(OptionError, match=message):
        resolve_plan(model, plan, size)


def test_a_plan_without_tensor_parallel_processes_is_refused():
    with pytest.raises(OptionError, match="tp_plan is for a mesh with tp: got mesh='dp'"):
        trainer(network(), mesh="dp", tp_plan={"0": "colwise"})


def test_a_model_s_own_plan_comes_first():
    model = network()
    model.tp_plan = {"0": "colwise_rep"}
    assert resolve_plan(model, None, 2) == {"0": "colwise_gather"}
    model.tp_plan = {"0": "moe_tp_experts"}
    with pytest.raises(OptionError, match=r"styles that are not known: 0 \(moe_tp_experts\); give tp_plan"):
        resolve_plan(model, None, 2)


def test_tied_weights_of_a_model_s_own_plan_stay_whole():
    model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "up": nn.Linear(4, 8), "head": nn.Linear(4, 8, bias=False)})
    model["head"].weight = model["embed"].weight
    model.tp_plan = {"embed": "embedding_rowwise", "up": "colwise", "head": "colwise_gather_output"}
    assert resolve_plan(model, None, 2) == {"up": "colwise"}


def test_a_mlp_is_what_its_parts_add_up_to():
    """The rule itself: with half of the hidden values each, two parts add up to the whole."""
    torch.manual_seed(0)
    mlp, x = Gated(4, 8), torch.randn(5, 4)
    total = torch.zeros(5, 4)
    for half in (slice(0, 4), slice(4, 8)):
        hidden = nn.functional.silu(x @ mlp.gate.weight[half].T + mlp.gate.bias[half])
        hidden = hidden * (x @ mlp.up.weight[half].T + mlp.up.bias[half])
        total = total + hidden @ mlp.down.weight[:, half].T
    torch.testing.assert_close(total + mlp.down.bias, mlp(x))
