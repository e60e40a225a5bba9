"""A loader over arrays in memory, in a page: all that the Trainer may ask of one."""

from __future__ import annotations

import numpy as np
import torch

from headrace.errors import StateError
from headrace.rank import resolve_rank


class MemoryLoader:
    """Global batches of shuffled rows; rank r of W has every W-th row of each."""

    def __init__(self, fields, global_batch_size, *, epochs=1, seed=0, shuffle=True, drop_last=True, keep=None):
        """`keep(row)` filters rows out of the batches they fall in."""
        self.fields = fields
        self.global_batch_size = global_batch_size
        self.epochs = epochs
        self.seed, self.shuffle, self.drop_last, self.keep = seed, shuffle, drop_last, keep
        self.num_rows = len(next(iter(fields.values())))
        self.position = 0  # global batches since the beginning of the run
        self.delivered = 0

    @property
    def steps_per_epoch(self):
        whole, rest = divmod(self.num_rows, self.global_batch_size)
        return whole + bool(rest and not self.drop_last)

    @property
    def full_batches(self):
        return self.drop_last and self.keep is None

    def __len__(self):
        return self.epochs * self.steps_per_epoch

    def __iter__(self):
        end = None if self.epochs is None else (self.position // self.steps_per_epoch + self.epochs)
        while end is None or self.position < end * self.steps_per_epoch:
            epoch, number = divmod(self.position, self.steps_per_epoch)
            self.position += 1
            self.delivered += 1
            yield self.batch(epoch, number)

    def batch(self, epoch, number):
        order = np.arange(self.num_rows)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        rows = order[number * self.global_batch_size :][: self.global_batch_size]
        place = resolve_rank()
        mine = rows[place.rank :: place.world_size]
        share = -(-len(rows) // place.world_size)
        real = torch.arange(share) < len(mine)
        mine = np.concatenate([mine, rows[: share - len(mine)]])
        if self.keep is not None:
            kept = np.array([self.keep(row) for row in mine], dtype=bool)
            mine, real = mine[kept], real[torch.from_numpy(kept)]
        batch = {"__key__": [str(row) for row in mine]}
        batch |= {name: torch.from_numpy(values[mine]) for name, values in self.fields.items()}
        return batch if real.all() else batch | {"__real__": real}

    def state_dict(self):
        return {"position": self.position, "global_batch_size": self.global_batch_size}

    def load_state_dict(self, state):
        if state["global_batch_size"] != self.global_batch_size:
            raise StateError("another global batch size")
        self.position = state["position"]

    def meters(self):
        stages = {"read": {"items": self.delivered, "bytes": 0, "busy_sec": 0.0, "wait_sec": 0.0}}
        return {"stages": stages, "threads": 1, "dropped": 0, "padded": 0, "skipped": 0}
