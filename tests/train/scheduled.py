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

DATA = Path(sys.argv[2]).parent


def messages():
    yield asked_too_early
    yield lambda: hr.parallelize(layered(), "pp", pp_micro_batches=1, device="cpu")
    yield lambda: learnt(hr.parallelize(layered(), "pp", pp_micro_batches=4, device="cpu"), 6)
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
    """By each process: the loss of a batch, what calling the model gives, and the names of its parameters."""
    module = hr.parallelize(layered(), "pp", pp_micro_batches=2, device="cpu")
    module.eval()
    mean, output = learnt(module, 8), module(torch.ones(8, 6))
    names = [name.removeprefix("module.") for name, _ in module.named_parameters()]
    shares = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, {"loss": mean, "output": output, "names": names})
    return shares


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
