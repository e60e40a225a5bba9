"""A small convolutional network on handwritten digits: from a folder of PNG files to about 99 % in half a minute.

python recipes/data.py digits data/digits
headrace pack data/digits data/digits-shards --split train=0.8,test=0.2
headrace train recipes/digits.py --nproc 2
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import headrace as hr


def shift(sample, rng):
    """Move the image by up to one pixel in each direction; the same move whenever this sample comes at this place."""
    down, right = rng.integers(0, 3, size=2)
    padded = np.pad(sample["png"], ((1, 1), (1, 1), (0, 0)))
    return {**sample, "png": padded[down : down + 8, right : right + 8]}


def pixels(batch):
    """The batch's images as the network takes them: (batch, 1, 8, 8), between 0 and 1."""
    return batch["png"].permute(0, 3, 1, 2).contiguous().float() / 255


def cross_entropy(output, batch):
    return nn.functional.cross_entropy(output, batch["cls"], label_smoothing=0.05)


def correct(output, batch):
    return output.argmax(1) == batch["cls"]


def network(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(2 * width * 4 * 4, 10),
    )


def recipe(
    *,
    data: str = "data/digits-shards",
    epochs: int = 40,
    batch_size: int = 64,
    lr: float = 2e-3,
    width: int = 32,
    checkpoint_every: int = 100,
    seed: int = 0,
    mesh: str = "dp",
) -> hr.Trainer:
    """`batch_size` counts the samples of all processes together."""
    torch.manual_seed(seed)
    train = hr.Stream(hr.open(f"{data}/train"), seed=seed).decode(color="gray").map(shift)
    test = hr.Stream(hr.open(f"{data}/test"), shuffle=False).decode(color="gray")
    return hr.Trainer(
        network(width),
        cross_entropy,
        hr.Loader(train, global_batch_size=batch_size),
        inputs=pixels,
        optimizer=hr.adamw(lr=lr, weight_decay=0.05),
        schedule=hr.cosine(warmup_steps=50),
        evaluate=hr.Loader(test, global_batch_size=240, drop_last=False),
        evaluate_every=10,
        metrics={"accuracy": correct},
        epochs=epochs,
        checkpoint_every=checkpoint_every,
        clip_grad_norm=5.0,
        seed=seed,
        mesh=mesh,
    )
