"""Faults for the guards' tests: each strikes one rank, or all, at chosen steps."""

from __future__ import annotations

import torch
from memory_loader import MemoryLoader

from headrace.rank import resolve_rank


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
    """One bit of the first number."""
    with torch.no_grad():
        tensor.view(torch.int32).view(-1)[0] ^= 1 << bit
