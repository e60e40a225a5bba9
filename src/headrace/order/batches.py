"""Batches: how the positions of an epoch are dealt to global batches, steps and ranks.

A global batch is `global_batch_size` consecutive positions; rank r of W takes those congruent to r. Both the number
of partitions and the global batch size must be divisible by W, so every rank has the same number of equal batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.errors import OptionError
from headrace.order.keyed import I64

DEFAULT_PARTITIONS = 48


def default_partitions(world_size: int) -> int:
    """The least common multiple of 48 and the world size that a run starts with."""
    return math.lcm(DEFAULT_PARTITIONS, world_size)


def check_world_size(world_size: int, partitions: int, global_batch_size: int | None = None) -> None:
    """Refuse a world size that does not divide the partitions and the global batch size; name the nearest that do.

    Without a global batch size (single samples are read) only the partitions count.
    """
    common = math.gcd(partitions, partitions if global_batch_size is None else global_batch_size)
    if common % world_size == 0:
        return
    smaller = max(w for w in range(1, min(world_size, common + 1)) if common % w == 0)
    larger = next((w for w in range(world_size + 1, common + 1) if common % w == 0), None)
    near = f"{smaller}" if larger is None else f"{smaller} and {larger}"
    if global_batch_size is None:
        rule, found = "the partitions", f"{partitions} partitions"
    else:
        rule = "both the partitions and the global batch size"
        found = f"{partitions} partitions and a global batch of {global_batch_size}"
    raise OptionError(
        f"the world size must divide {rule}: got {world_size} ranks for {found}; the nearest that work: {near}"
    )


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of one epoch of `num_samples` samples for one rank."""

    num_samples: int
    global_batch_size: int
    rank: int
    world_size: int
    drop_last: bool

    @property
    def num_steps(self) -> int:
        """Batches of an epoch: the same for every rank."""
        full, rest = divmod(self.num_samples, self.global_batch_size)
        return full if self.drop_last or rest == 0 else full + 1

    @property
    def num_dropped(self) -> int:
        """Samples of an epoch that no rank gets: those of the incomplete global batch, if it is dropped."""
        return self.num_samples % self.global_batch_size if self.drop_last else 0

    @property
    def stop(self) -> int:
        """The position after the last that is delivered."""
        return self.num_samples - self.num_dropped

    def positions(self, first_step: int, last_step: int) -> tuple[I64, NDArray[np.bool_], list[int]]:
        """Positions of this rank for steps first_step to last_step - 1.

        Returns the positions laid end to end, which of them are real (not repeats), and each batch's size. In an
        incomplete last batch every rank's share is as large as the largest: a rank with one sample fewer repeats the
        last that it owns, or, owning none in the epoch, one of another rank.
        """
        starts = np.arange(first_step, last_step) * self.global_batch_size
        sizes = -(-np.minimum(self.global_batch_size, self.num_samples - starts) // self.world_size)
        ends = np.cumsum(sizes)
        within = np.arange(sizes.sum()) - np.repeat(ends - sizes, sizes)
        wanted = np.repeat(starts, sizes) + within * self.world_size + self.rank
        real = wanted < self.num_samples
        return np.where(real, wanted, self._repeated()), real, sizes.tolist()

    def has_repeats(self, step: int) -> bool:
        """Whether some rank repeats samples in this step."""
        count = min(self.global_batch_size, self.num_samples - step * self.global_batch_size)
        return count % self.world_size != 0

    def _repeated(self) -> int:
        last = self.num_samples - 1
        owned = last - (last - self.rank) % self.world_size
        return owned if owned >= 0 else self.rank % self.num_samples
