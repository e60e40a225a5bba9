"""Operations of a step: counted once, right for layers whose count is known, and never guessed."""

import pytest
import torch
from problems import fields, trainer
from torch import nn
from torch.utils.checkpoint import checkpoint

from headrace.telemetry import read_events
from headrace.train.flops import FlopCount, may_count, peak_flops
from headrace.train.parallel import Mesh

HIDDEN, OUT = 32, 4


def steps_of(folder):
    return [event for event in read_events(folder / "events.jsonl") if event["event"] == "step"]


def test_a_step_s_operations_are_those_of_its_layers(tmp_path):
    width = fields(2)["x"].shape[1]
    model = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))
    trainer(model, run_dir=tmp_path).fit(steps=3)
    layers = 2 * (width * HIDDEN + HIDDEN * OUT)  # a multiplication and an addition each
    expected = 3 * layers - 2 * width * HIDDEN  # nobody asks for the gradient of the input
    for step in steps_of(tmp_path):
        assert step["flops"] == expected * step["samples"]
        assert "mfu" not in step  # nobody knows the peak rate of this processor


def test_what_is_done_twice_is_not_counted(tmp_path):
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)]
    model = nn.Sequential(nn.Linear(fields(2)["x"].shape[1], 8), nn.Sequential(*blocks), nn.Linear(8, OUT))
    trainer(model, run_dir=tmp_path, activation_checkpointing="full").fit(steps=2)
    assert all("flops" not in step for step in steps_of(tmp_path))


class Thrifty(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(fields(2)["x"].shape[1], HIDDEN), nn.ReLU())
        self.last = nn.Linear(HIDDEN, OUT)
        self.reentrant = reentrant

    def forward(self, x):
        return self.last(checkpoint(self.first, x.requires_grad_(), use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_model_does_twice_by_itself_is_not_counted(tmp_path, reentrant):
    trainer(Thrifty(reentrant), run_dir=tmp_path).fit(steps=2)
    assert all("flops" not in step for step in steps_of(tmp_path))


class Multiplying(torch.optim.SGD):
    """As Muon does."""

    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            if param.dim() == 2:
                param.grad @ param.grad.T
        return super().step(closure)


def test_what_the_optimizer_multiplies_is_none_of_the_models(tmp_path):
    counted = []
    for optimizer in (Multiplying, torch.optim.SGD):
        model = nn.Sequential(nn.Linear(fields(2)["x"].shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, OUT))
        folder = tmp_path / optimizer.__name__
        trainer(model, run_dir=folder, optimizer=lambda params, make=optimizer: make(params, 0.1)).fit(steps=2)
        counted.append([step["flops"] for step in steps_of(folder)])
    assert counted[0] == counted[1]


@pytest.mark.parametrize(
    ("options", "mesh", "counts"),
    [
        ({}, Mesh(dp=2, fsdp=2), True),
        ({"compile": True}, Mesh(), False),
        ({}, Mesh(tp=2), False),
        ({}, Mesh(pp=2), False),
        ({"activation_checkpointing": "full"}, Mesh(), False),
    ],
)
def test_what_cannot_be_seen_as_it_is_written_is_not_counted(options, mesh, counts):
    assert may_count(trainer(**options)._options, mesh) == counts


def test_mfu_is_the_share_of_what_all_devices_could_do():
    count = FlopCount(True, 1e12, 4)
    with count.around(8):
        torch.ones(8, 10) @ torch.ones(10, 20)
    assert count.per_sample == 2 * 10 * 20
    assert count.fields(100, 0.5) == {"flops": 40_000, "mfu": pytest.approx(40_000 / 0.5 / 4e12)}
    with count.around(8):
        torch.ones(8, 10) @ torch.ones(10, 20)
    assert count.per_sample == 2 * 10 * 20, "it counts once"


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H100 80GB HBM3", "float8", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
        ("NVIDIA A100-SXM4-80GB", "fp16", 312e12),
        ("NVIDIA GeForce GTX 980", "bf16", None),
    ],
)
def test_a_device_s_peak_rate_is_in_the_table_or_unknown(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(precision, torch.device("cuda")) == peak


def test_of_a_processor_no_rate_is_known():
    assert peak_flops("bf16", torch.device("cpu")) is None
