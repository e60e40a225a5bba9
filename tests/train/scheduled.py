"""`python scheduled.py SCHEDULE FILE` on two ranks: a pipeline by it.

`refused` in its place: what is not done; `staged`: what a loop of one's own is given.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from problems import cross_entropy, inputs, layered, trainer, weights

import headrace as hr
from headrace.errors import HeadraceError


def messages():
    yield asked_too_early
    yield lambda: hr.parallelize(layered(), "pp", pp_micro_batches=1, device="cpu")
    module = hr.parallelize(layered(), "pp", pp_micro_batches=4, device="cpu")
    yield lambda: learnt(module, 6)
    learnt(module, 8)
    yield lambda: learnt(module, 4)
    yield lambda: trainer(layered(), steps=1, mesh="pp", optimizer=hr.muon()).fit()
    yield lambda: trainer(layered(), steps=1, mesh="pp", inputs=lambda batch: {"input": batch["x"]}).fit()

    yield lambda: trainer(half_frozen(), steps=1, mesh="pp").fit()


def half_frozen():
    model = layered()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    return model


def learnt(module, rows):
    return module.learn(torch.ones(rows, 6), target=torch.zeros(rows, dtype=torch.long), loss=cross_entropy_of)


def cross_entropy_of(output, target):
    return torch.nn.functional.cross_entropy(output, target)


def staged():
    """By each process: the loss of a batch, what calling the model gives, and its state."""
    module = hr.parallelize(with_statistics(), "pp", pp_micro_batches=2, device="cpu")
    module.eval()
    outputs = [module(torch.ones(rows, 6)) for rows in (8, 3)]
    module.train()
    mean, state = learnt(module, 8), module.state_dict()
    shares = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, {"loss": mean, "outputs": outputs, "state": state})
    return shares


def with_statistics():
    model = layered()
    model[0] = torch.nn.Sequential(model[0], torch.nn.BatchNorm1d(7))
    model[2] = torch.nn.BatchNorm1d(7)
    return model


def asked_too_early():
    """A loader that has counted its steps as if each process had a share of its own."""
    loader = hr.Loader(hr.Stream(hr.open(Path(sys.argv[2]).parent / "data")), global_batch_size=4)
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
    elif schedule == "staged":
        found = staged()
    else:
        model = layered()
        trainer(model, steps=10, mesh="pp", pp_schedule=schedule, clip_grad_norm=0.3).fit()
        found = weights(model)
    if torch.distributed.get_rank() == 0:
        torch.save(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
