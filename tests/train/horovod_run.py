"""A run for Horovod's launcher, which describes no group to torch: `python horovod_run.py FOLDER`.

Each rank leaves its weights in the folder: of convolutions with channels last, whose gradients are not contiguous.
"""

import sys
from pathlib import Path

import problems as p
import torch
from torch import nn

from headrace.rank import resolve_rank


def learnt(**options):
    torch.manual_seed(3)
    layers = nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 4, (2, 1)), nn.ReLU(), nn.Conv2d(4, 4, (2, 1)), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(4, 3)).to(memory_format=torch.channels_last)
    p.trainer(model, steps=20, **options).fit()
    return p.weights(model)


def main(folder):
    torch.set_num_threads(1)
    found = learnt(engine="horovod")
    torch.save(found, folder / f"{resolve_rank().rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
