"""`python horovod_alternating.py FOLDER` on each rank: a layer that takes part in every other micro-batch only."""

from __future__ import annotations

import sys
from pathlib import Path

import problems as p
import torch
from torch import nn


class Alternating(nn.Module):
    """Its second layer is used at odd calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.always, self.sometimes = nn.Linear(6, 3), nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.always(x) + (self.sometimes(x) if self.calls % 2 else 0)


def learnt(**options):
    model = Alternating()
    p.trainer(model, steps=8, **options).fit()
    return p.weights(model)


def main(folder):
    found = learnt(engine="horovod", micro_batch_size=3)
    torch.save(found, Path(folder) / f"{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
