"""A small regression and classification problem, and networks for them."""

from __future__ import annotations

import numpy as np
import torch
from memory_loader import MemoryLoader
from torch import nn

import headrace as hr


def fields(num_rows=96, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 3))).argmax(1)
    return {"x": x, "cls": y, "tokens": rng.integers(1, 9, num_rows)}


def network(dropout=0.0, seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


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
    options = {"inputs": inputs, "optimizer": hr.sgd(0.1), "device": "cpu", **options}
    loader = MemoryLoader(fields(), 12, epochs=None) if loader is None else loader
    return hr.Trainer(network() if model is None else model, loss, loader, **options)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
