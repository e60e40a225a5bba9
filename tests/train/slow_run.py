"""A run that goes on until it is stopped: `python slow_run.py RUN`; prints where it ended."""

import sys
import time

import problems as p
import torch

torch.set_num_threads(1)


def loss(output, batch):
    time.sleep(0.05)
    return p.cross_entropy(output, batch)


result = p.trainer(loss=loss, run_dir=sys.argv[1], steps=1_000_000).fit()
print(result.steps, result.stopped)
