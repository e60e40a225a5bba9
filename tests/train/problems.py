"""A small regression and classification problem, and networks for them."""

from __future__ import annotations

import os

import numpy as np
import torch
from memory_loader import MemoryLoader
from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleOutput, RowwiseParallel

import headrace as hr

OPTIMIZERS = {
    "sgd": hr.sgd(0.1, momentum=0.9, weight_decay=0.01),
    "adamw": hr.adamw(0.01, weight_decay=0.1),
    "lamb": hr.lamb(0.02, weight_decay=0.1),
    "adafactor": hr.adafactor(0.02, weight_decay=0.1),
    "muon": hr.muon(0.01, weight_decay=0.1),
}


def fields(num_rows=96, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 3))).argmax(1)
    return {"x": x, "cls": y, "tokens": rng.integers(1, 9, num_rows)}


def network(dropout=0.0, seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width + 2), nn.Linear(2 * width + 2, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def layered(seed=3):
    """Repeated blocks, some of whose dimensions divide by nothing."""
    torch.manual_seed(seed)
    blocks = [Block(7) for _ in range(3)]
    return nn.Sequential(nn.Linear(6, 7), nn.Sequential(*blocks), nn.LayerNorm(7), nn.Linear(7, 3))


class OverSequence(nn.Module):
    """Six places of a sequence, blocks over them, and a mean: (batch, 6) to (batch, 3)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.spread = nn.Linear(1, 8)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.spread(x[:, :, None])))).mean(1)[:, :3]

    @staticmethod
    def plan():
        over = Shard(1)
        return {
            "spread": PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=over),
            "blocks.*.norm": "sequence",
            "blocks.*.up": ColwiseParallel(input_layouts=over),
            "blocks.*.down": RowwiseParallel(output_layouts=over),
            "norm": "sequence",
            "head": ColwiseParallel(input_layouts=over, output_layouts=Replicate()),
        }


def inputs(batch):
    return batch["x"]


def cross_entropy(output, batch):
    return nn.functional.cross_entropy(output, batch["cls"])


def by_tokens(output, batch):
    """Weighted mean with each sample's weight its tokens."""
    each = nn.functional.cross_entropy(output, batch["cls"], reduction="none")
    tokens = batch["tokens"]
    mean = (each * tokens).sum() / tokens.sum()
    return mean, {"weight": tokens.sum(), "bits": mean / 0.6931471805599453}


def correct(output, batch):
    return output.argmax(1) == batch["cls"]


def trainer(model=None, loader=None, loss=cross_entropy, **options):
    place = {"mesh": os.environ.get("TEST_MESH", "dp"), "engine": os.environ.get("TEST_ENGINE")}
    if stage := os.environ.get("TEST_ZERO_STAGE"):
        place |= {"engine": "deepspeed", "zero_stage": int(stage)}
    options = {"inputs": inputs, "optimizer": hr.sgd(0.1), "device": "cpu", **place, **options}
    loader = MemoryLoader(fields(), 12, epochs=None) if loader is None else loader
    return hr.Trainer(network() if model is None else model, loss, loader, **options)


def exact(**options):
    """In double precision, in which another order of sums is not seen after many steps either."""
    return trainer(network().double(), inputs=lambda batch: batch["x"].double(), micro_batch_size=6, **options)


def weights(model):
    """All of them, whole. Collective where processes have parts."""
    if os.environ.get("TEST_ZERO_STAGE") == "3":
        return gathered_weights(model)
    state = model.state_dict()
    own = {name: whole(value).clone() for name, value in state.items() if value.device.type != "meta"}
    if len(own) == len(state):
        return own
    shares = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, own)
    everything = {name: value for share in shares for name, value in share.items()}
    return {name: everything[name] for name in state}


def gathered_weights(model):
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: value.clone() for name, value in model.state_dict().items()}


def whole(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
