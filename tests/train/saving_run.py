"""A run that saves often: `python saving_run.py RUN OPTIONS`, with the options of the Trainer as JSON.

Two more are its own: `steps`, and `full_on`: the rank whose disk is full once there is a checkpoint. Prints how it
ended; the weights it ended with, whole, are in RUN/weights.pt.
"""

import json
import resource
import signal
import sys
from pathlib import Path

import problems as p
import torch

import headrace as hr
from headrace.errors import CheckpointError
from headrace.rank import resolve_rank

torch.set_num_threads(1)
run_dir, options = Path(sys.argv[1]), json.loads(sys.argv[2])
steps, full_on = options.pop("steps"), options.pop("full_on", None)
rank = resolve_rank().rank


def loss(output, batch):
    if rank == full_on and (run_dir / "checkpoints/step-00000004").exists():
        # A limit on file sizes stands in for a full disk: writes fail part-way in the same manner.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
    return p.cross_entropy(output, batch)


model = p.layered()
made = p.trainer(model, loss=loss, optimizer=hr.adamw(0.01), run_dir=run_dir, checkpoint_every=2, **options)
try:
    result = made.fit(steps=steps)
except CheckpointError as err:
    print(err)
    sys.exit(1)
weights = p.weights(model)
if rank == 0:
    torch.save(weights, run_dir / "weights.pt")
print(result.steps, result.resumed_from)
