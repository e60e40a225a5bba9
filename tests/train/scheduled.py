"""`python scheduled.py SCHEDULE FILE` on two ranks: a pipeline by it; `refused` in its place: what is not done."""

from __future__ import annotations

import sys

import torch
from problems import layered, trainer, weights

import headrace as hr
from headrace.errors import HeadraceError


def messages():
    yield lambda: hr.parallelize(layered(), "pp", device="cpu")
    yield lambda: trainer(layered(), steps=1, mesh="pp", optimizer=hr.muon()).fit()
    yield lambda: trainer(layered(), steps=1, mesh="pp", inputs=lambda batch: {"input": batch["x"]}).fit()


def message(attempt):
    try:
        attempt()
    except HeadraceError as err:
        return str(err)
    return None


def main(schedule, file):
    if schedule == "refused":
        found = [message(attempt) for attempt in messages()]
    else:
        model = layered()
        trainer(model, steps=10, mesh="pp", pp_schedule=schedule, clip_grad_norm=0.3).fit()
        found = weights(model)
    if torch.distributed.get_rank() == 0:
        torch.save(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
