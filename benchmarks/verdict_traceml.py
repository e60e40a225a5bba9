"""A plain loop with a bottleneck in it, for TraceML: `VERDICT_CASE=CASE.json traceml run verdict_traceml.py`.

The same feed, model and loss as in `verdict_run.py`; checkpoints are saved as a hand-written loop would.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))

import traceml_ai as traceml

from verdict_run import RANK, Model, loader


def main() -> None:
    case = json.loads(Path(os.environ["VERDICT_CASE"]).read_text())
    torch.set_num_threads(1)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("gloo")
    traceml.init(mode="auto")
    model: nn.Module = Model(case.get("millions", 0.0), (0.0, 0.0))
    if dist.is_initialized():
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    device = case.get("step_sec", 0.0) + (case.get("slow_rank_sec", 0.0) if case.get("slow_rank") == RANK else 0.0)
    every = case.get("checkpoint_every")
    until = time.monotonic() + case["seconds"]
    stop = torch.zeros(1)
    with tempfile.TemporaryDirectory() as folder:
        for number, batch in enumerate(traceml.wrap_dataloader_fetch(loader(case)), start=1):
            with traceml.trace_step(model):
                output = model(batch["x"])
                time.sleep(device)
                nn.functional.cross_entropy(output, batch["y"]).backward()
                optimizer.step()
                optimizer.zero_grad()
                if every and number % every == 0 and RANK == 0:
                    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/last.pt")
            stop.fill_(float(time.monotonic() >= until))
            if dist.is_initialized():
                dist.all_reduce(stop)
            if stop.item():
                break


if __name__ == "__main__":
    main()
