"""What cannot be trained, on each rank: `python bad_input.py FOLDER` leaves the errors in FOLDER/RANK.json.

As a recipe, `headrace train bad_input.py:NAME`, what goes wrong on the last rank only.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import problems as p
import torch
from memory_loader import MemoryLoader
from torch import nn

import headrace as hr
from headrace.rank import resolve_rank
from headrace.train import world

world.TIMEOUT = timedelta(seconds=30)


def on_the_last_rank():
    place = resolve_rank()
    return place.rank == place.world_size - 1


class Short(MemoryLoader):
    """On the last rank every epoch is two batches short."""

    def __iter__(self):
        while True:
            for number, batch in enumerate(super().__iter__()):
                if on_the_last_rank() and number % self.steps_per_epoch == self.steps_per_epoch - 2:
                    return
                yield batch
            return


def on_meta():
    model = p.network()
    model[0].to("meta")
    return model


def of_two_dtypes():
    model = p.layered()
    model[1][1].up.to(torch.bfloat16)
    return model


def partly_used():
    model = p.network()
    model.register_module("spare", nn.Linear(3, 3))
    model.forward = lambda x: model[3](model[1](model[0](x)))
    return model


def another_model(run_dir):
    p.trainer(run_dir=run_dir).fit(steps=2)
    return p.trainer(nn.Sequential(nn.Linear(6, 5)), run_dir=run_dir)


def everywhere(folder):
    """What goes wrong on all ranks alike: name -> a Trainer."""
    yield "mesh", lambda: p.trainer(mesh="dp=3")
    yield "meta", lambda: p.trainer(on_meta())
    yield "dtypes", lambda: p.trainer(of_two_dtypes(), mesh="fsdp")
    yield "vector", lambda: p.trainer(loss=lambda output, batch: output.sum(1))
    yield "number", lambda: p.trainer(loss=lambda output, batch: 1.0)
    yield "no gradient", lambda: p.trainer(loss=lambda output, batch: output.sum().detach())
    yield "unused", lambda: p.trainer(partly_used())
    yield "another model", lambda: another_model(folder / "run")


def vector_loss() -> hr.Trainer:
    def loss(output, batch):
        mean = p.cross_entropy(output, batch)
        return mean.expand(2) if on_the_last_rank() else mean

    return p.trainer(loss=loss, steps=6)


def short_loader() -> hr.Trainer:
    return p.trainer(loader=Short(p.fields(), 12, epochs=2))


def short_evaluation(*, mesh: str = "fsdp") -> hr.Trainer:
    return p.trainer(p.layered(), evaluate=Short(p.fields(), 12), evaluate_every=0.25, steps=4, mesh=mesh)


def main(folder):
    torch.set_num_threads(1)
    found = {}
    for name, make in everywhere(folder):
        try:
            make().fit(steps=3)
        except hr.HeadraceError as err:
            found[name] = f"{type(err).__name__}: {err}"
    for mesh in ("dp", "fsdp"):
        model = nn.Sequential(p.network(), nn.BatchNorm1d(3))
        p.trainer(model, mesh=mesh, evaluate=MemoryLoader(p.fields(), 12)).fit(steps=3)
        found[f"statistics {mesh}"] = model[1].running_mean.tolist()
    (folder / f"{resolve_rank().rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
