"""A run that takes its time: `python slow_run.py RUN [SECONDS A STEP]`; prints where it ended."""

import sys
import time

import problems as p
import torch

torch.set_num_threads(1)
run_dir, pause = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.05


def loss(output, batch):
    time.sleep(pause)
    return p.cross_entropy(output, batch)


result = p.trainer(loss=loss, run_dir=run_dir, steps=400).fit()
print(result.steps, result.stopped)
