"""`python scheduled.py SCHEDULE FILE` on two ranks: a pipeline by it; `refused` in its place: what is not done."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from problems import cross_entropy, inputs, layered, trainer, weights

import headrace as hr
from headrace.errors import HeadraceError

DATA = Path(sys.argv[2]).parent


def messages():
    yield asked_too_early
    yield lambda: hr.parallelize(layered(), "pp", device="cpu")
    yield lambda: trainer(layered(), steps=1, mesh="pp", optimizer=hr.muon()).fit()
    yield lambda: trainer(layered(), steps=1, mesh="pp", inputs=lambda batch: {"input": batch["x"]}).fit()

    yield lambda: trainer(half_frozen(), steps=1, mesh="pp").fit()


def half_frozen():
    model = layered()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    return model


def asked_too_early():
    """A loader that has counted its steps as if each process had a share of its own."""
    loader = hr.Loader(hr.Stream(hr.open(DATA / "data")), global_batch_size=4)
    len(loader)
    hr.Trainer(layered(), cross_entropy, loader, inputs=inputs, optimizer=hr.sgd(0.1), mesh="pp", device="cpu").fit()


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
