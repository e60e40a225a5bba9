"""Faults for the guards' tests: each strikes one rank, or all, at chosen steps."""

from __future__ import annotations

import time

import torch
from memory_loader import MemoryLoader

from headrace.rank import resolve_rank
from headrace.train.dtensors import part


def strikes(rank):
    """Whether this process is the one; None: every process is."""
    return rank is None or resolve_rank().rank == rank


class FaultyLoader(MemoryLoader):
    """Changes some batches of one rank: `change(batch)` is called on those of the steps (from 1) given."""

    def __init__(self, fields, global_batch_size, *, steps, change, rank=None, **options):
        super().__init__(fields, global_batch_size, **options)
        self.steps, self.change, self.rank = set(steps), change, rank

    def batch(self, epoch, number):
        found = super().batch(epoch, number)
        if epoch * self.steps_per_epoch + number + 1 in self.steps and strikes(self.rank):
            self.change(found)
        return found


def poison(batch):
    """A NaN in the second sample."""
    batch["x"][1, 2] = float("nan")


def blow_up(batch):
    """Values far outside of the data's range, with labels that are wrong."""
    batch["x"] *= 1e3
    batch["cls"] = (batch["cls"] + 1) % 3


def confuse(batch):
    """Labels that are wrong."""
    batch["cls"] = (batch["cls"] + 1) % 3


def flip_bit(tensor, bit=20):
    """One bit of the first number that this rank has."""
    with torch.no_grad():
        part(tensor).view(torch.int32).view(-1)[0] ^= 1 << bit


def flipping(factory, *, step, rank):
    """An optimizer after whose step (from 1) a bit of the first parameter is flipped on one rank."""

    def build(params):
        optimizer = factory(params)
        steps = []

        def strike(optimizer, *_):
            steps.append(None)
            if len(steps) == step and strikes(rank):
                flip_bit(optimizer.param_groups[0]["params"][0])

        optimizer.register_step_post_hook(strike)
        return optimizer

    return build


class Unsound(torch.nn.Module):
    """A layer that changes nothing, but for a bit in every second pass on one rank, from the `first` in training on."""

    def __init__(self, *, first, rank):
        super().__init__()
        self.passes, self.first, self.rank = 0, first, rank

    def forward(self, x):
        self.passes += self.training
        if self.training and self.passes >= self.first and self.passes % 2 and strikes(self.rank):
            x = x.clone()
            flip_bit(x.detach())
        return x


def slowed(loss, *, sec, rank):
    """A loss that takes longer on one rank."""

    def slow(output, batch):
        if strikes(rank):
            time.sleep(sec)
        return loss(output, batch)

    return slow
