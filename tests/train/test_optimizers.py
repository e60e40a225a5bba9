from __future__ import annotations

import copy
import math

import problems as p
import pytest
import torch
from processes import HERE, run_ranks
from torch import nn

import headrace as hr
from headrace.errors import OptionError
from headrace.train.optimizers import built
from headrace.train.optimizers.muon import MuonOptimizer


def test_they_are_what_torch_gives_for_the_same_values():
    for ours, theirs in (
        (hr.adamw(0.1, weight_decay=0.2), torch.optim.AdamW),
        (hr.sgd(0.1, momentum=0.9, nesterov=True), torch.optim.SGD),
    ):
        optimizer = ours(nn.Linear(2, 2).parameters())
        assert type(optimizer) is theirs
        group = optimizer.param_groups[0]
        assert all(group[name] == value for name, value in vars_of(ours).items())
        assert optimizer.param_groups[-1]["weight_decay"] == 0


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


@pytest.mark.parametrize("name", p.OPTIMIZERS)
def test_norms_and_biases_are_not_decayed(name):
    """Without gradients to follow, weights shrink and the others stay."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    for param in model.parameters():
        nn.init.constant_(param, 0.5)
        param.grad = torch.zeros_like(param)
    built(p.OPTIMIZERS[name], model).step()
    for param in model.parameters():
        assert bool((param < 0.5).all()) == (param.dim() > 1)


@pytest.mark.parametrize("name", p.OPTIMIZERS)
def test_each_learns(name):
    first = p.trainer(steps=1, optimizer=p.OPTIMIZERS[name]).fit().loss
    assert p.trainer(steps=60, optimizer=p.OPTIMIZERS[name]).fit().loss < 0.7 * first


@pytest.mark.parametrize("name", p.OPTIMIZERS)
def test_a_run_goes_on_bit_for_bit(name, tmp_path):
    straight, model = p.network(), p.network(seed=7)
    p.trainer(straight, steps=12, optimizer=p.OPTIMIZERS[name]).fit()
    p.trainer(p.network(), steps=7, optimizer=p.OPTIMIZERS[name], run_dir=tmp_path).fit()
    p.trainer(model, steps=12, optimizer=p.OPTIMIZERS[name], run_dir=tmp_path).fit()
    assert p.largest_difference(p.weights(straight), p.weights(model)) == 0


def gradients(shapes, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps)]


def stepped(optimizer, params, steps):
    for grads in steps:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.clone()
        optimizer.step()


SHAPES = [(6, 5), (5,), (3, 4, 2, 2), (1, 7), ()]


def parameters(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_adafactor_is_torchs():
    ours, theirs = parameters(), parameters()
    steps = gradients(SHAPES, 8)
    stepped(hr.adafactor(0.3)(ours), ours, steps)
    stepped(torch.optim.Adafactor(theirs, lr=0.3), theirs, steps)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix():
    param = nn.Parameter(torch.ones(30, 20))
    optimizer = hr.adafactor()([param])
    stepped(optimizer, [param], gradients([(30, 20)], 1))
    assert sum(value.numel() for value in optimizer.state[param].values() if isinstance(value, torch.Tensor)) == 50


def test_lamb_is_the_papers_algorithm():
    """Written out for one layer, in double precision."""
    lr, beta1, beta2, eps, decay = 0.1, 0.9, 0.99, 1e-6, 0.1
    param = nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    x = param.detach().clone()
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    steps = [[grads[0].double()] for grads in gradients([(4, 3)], 6)]
    for t, (g,) in enumerate(steps, start=1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        r = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
        step = r + decay * x
        x = x - lr * x.norm() / step.norm() * step
    optimizer = hr.lamb(lr, (beta1, beta2), decay, eps)([param])
    stepped(optimizer, [param], steps)
    torch.testing.assert_close(param.detach(), x, rtol=1e-5, atol=1e-6)


def test_lamb_moves_a_layer_by_a_share_of_its_own_norm_and_a_layer_of_zeros_at_all():
    large, zero = nn.Parameter(100 * torch.ones(3, 3)), nn.Parameter(torch.zeros(3, 3))
    optimizer = hr.lamb(0.01, weight_decay=0)([large, zero])
    stepped(optimizer, [large, zero], gradients([(3, 3), (3, 3)], 1))
    assert float((large.detach() - 100).norm()) == pytest.approx(0.01 * 300, rel=1e-4)
    assert float(zero.detach().abs().max()) == pytest.approx(0.01, rel=1e-3)


class TiedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv1d(8, 8, 3)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embedding.weight


def test_muon_moves_hidden_matrices_only():
    model = TiedLanguageModel()
    optimizer = built(hr.muon(), model)
    names = {id(param): name for name, param in model.named_parameters()}
    groups = [[names[id(param)] for param in group["params"]] for group in optimizer.param_groups]
    assert groups[0] == ["hidden.weight"]
    assert sorted(name for group in groups[1:] for name in group) == sorted(set(names.values()) - {"hidden.weight"})


def test_muon_is_torchs_where_no_parameter_is_sharded():
    steps = gradients([(6, 5), (3, 8)], 5)
    moved = []
    for make in (
        lambda params: MuonOptimizer(params, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        lambda params: torch.optim.Muon(params, lr=0.1, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ):
        params = [nn.Parameter(torch.ones(shape)) for shape in ((6, 5), (3, 8))]
        stepped(make(params), params, steps)
        moved.append(params)
    for one, other in zip(*moved, strict=True):
        torch.testing.assert_close(one, other)


def test_muon_without_hidden_matrices_is_refused():
    with pytest.raises(OptionError, match="this one has none; take adamw"):
        p.trainer(nn.Linear(6, 3), steps=1, optimizer=hr.muon()).fit()


def test_rates_set_on_muon_are_those_of_both_and_its_state_is_saved_whole():
    model = TiedLanguageModel()
    optimizer = built(hr.muon(), model)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    other = built(hr.muon(), copy.deepcopy(model))
    other.load_state_dict(saved)
    for group in other.param_groups:
        group["lr"] = 0.0
    others = [param for group in other.param_groups for param in group["params"]]
    before = [param.detach().clone() for param in others]
    for param in others:
        param.grad = torch.ones_like(param)
    other.step()
    assert all(torch.equal(param, was) for param, was in zip(others, before, strict=True))
    assert {len(state) for state in saved["state"].values()} == {1, 3}


def test_sharded_parameters_move_as_whole_ones_do(tmp_path):
    """FSDP2 over two gloo processes, in which one rank's parts are shorter and some parameters lie on one rank only."""
    run_ranks(2, [HERE / "sharded_optimizers.py", tmp_path])
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == {*p.OPTIMIZERS, "norms"}
        assert {name: value for name, value in found.items() if not value <= 2e-6 or math.isnan(value)} == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: hr.lamb(0),
        lambda: hr.lamb(betas=(1.0, 0.9)),
        lambda: hr.adafactor(beta2_decay=0.1),
        lambda: hr.adafactor(clipping=0),
        lambda: hr.muon(momentum=1),
        lambda: hr.muon(betas=(0.9,)),
    ],
)
def test_values_out_of_range_are_refused_by_all(make):
    with pytest.raises(OptionError, match="got"):
        make()


@pytest.mark.parametrize(
    ("optimizer", "matrix", "vector"),
    [
        (hr.sgd(0.1), 0, 0),
        (hr.sgd(0.1, momentum=0.9), 4, 4),
        (hr.adamw(), 8, 8),
        (hr.lamb(), 8, 8),
        (hr.adafactor(), 4 / 256 + 4 / 128, 4),
        (hr.muon(), 4, 8),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, float | int) else None,
)
def test_state_takes_the_bytes_a_parameter_that_the_table_says(optimizer, matrix, vector):
    """Of a matrix between two layers and of the vectors; counters of a number each are not counted."""
    model = nn.Sequential(nn.Linear(4, 256), nn.Linear(256, 128), nn.Linear(128, 4))
    made = built(optimizer, model)
    model(torch.ones(2, 4)).square().mean().backward()
    made.step()
    for param, expected in ((model[1].weight, matrix), (model[1].bias, vector)):
        kept = [value for value in made.state[param].values() if isinstance(value, torch.Tensor) and value.numel() > 1]
        assert sum(value.nbytes for value in kept) / param.numel() == pytest.approx(expected)
