"""Whether all ranks that should hold the same parameters do: a sum of their bits, compared once in a while.

Ranks hold the same where their parts of all parameters lie in the same place, whatever the mesh. The sum is one of
integers, so it is exact, and does not depend on the order in which a device adds up. It takes about a millisecond for
10^9 parameters on a GPU. A flipped bit stays in a replica, because all of them take the same updates, so that nothing
is missed by looking every hundred steps.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from headrace.train.dtensors import part, place
from headrace.train.guards.learning import Learning
from headrace.train.world import wait_as_all

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Difference:
    """Ranks that should hold the same parameters, and do not."""

    group: tuple[int, ...]
    odd: tuple[int, ...]
    """Those that differ from the majority; all of the group where there is none."""

    @property
    def source(self) -> int:
        """The lowest rank that is of the majority; the lowest of all where there is none."""
        return min(set(self.group) - set(self.odd), default=self.group[0])

    def __str__(self) -> str:
        if self.odd == self.group:
            return f"the parameters of ranks {_listed(self.group)} differ"
        others = [rank for rank in self.group if rank not in self.odd]
        ranks = "ranks" if len(self.odd) > 1 else "rank"
        return f"the parameters of {ranks} {_listed(self.odd)} differ from those of ranks {_listed(others)}"


class Replicas:
    """The groups of ranks that hold the same."""

    def __init__(self, learner: Learning) -> None:
        """Find them. Collective."""
        self._learner = learner
        places = learner.world.gather(_place_of(learner))
        alike = [tuple(rank for rank, other in enumerate(places) if other == one) for one in dict.fromkeys(places)]
        self.groups = [group for group in alike if len(group) > 1]
        """Those of two ranks and more."""

    def fingerprint(self) -> Tensor:
        """The sum of the bits of all that this rank holds, int64 of shape (1,), on its device."""
        return bit_sum(part(param.detach()) for param in self._learner.model.parameters())

    def differences(self, fingerprints: Sequence[int]) -> list[Difference]:
        """What the fingerprints of all ranks say."""
        found = []
        for group in self.groups:
            counts = Counter(fingerprints[rank] for rank in group)
            usual, count = counts.most_common(1)[0]
            if len(counts) > 1:
                majority = 2 * count > len(group)
                odd = tuple(rank for rank in group if fingerprints[rank] != usual) if majority else group
                found.append(Difference(group, odd))
        return found

    def repair(self, differences: Iterable[Difference]) -> None:
        """Give the ranks of each group what its source holds, the optimizer's state and the average too. Collective."""
        for difference in differences:
            ranks = difference.group
            apart = dist.new_group(list(ranks)) if len(ranks) < self._learner.world.size else None
            if self._learner.world.rank in ranks:
                if apart is not None:
                    wait_as_all([apart], self._learner.world.device)
                for tensor in self._held():
                    dist.broadcast(tensor, src=difference.source, group=apart)
            if apart is not None:
                dist.destroy_process_group(apart)

    def _held(self) -> Iterator[Tensor]:
        for param in self._learner.model.parameters():
            yield part(param.detach())
            for value in self._learner.optimizer.state.get(param, {}).values():
                if isinstance(value, Tensor):
                    yield part(value)
        if self._learner.average is not None:
            yield from self._learner.average.weights()


def bit_sum(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of their bits, read as integers and wrapped around, int64 of shape (1,)."""
    sums = [_integers(tensor).sum(dtype=torch.int64) for tensor in tensors]
    return torch.stack(sums).sum().reshape(1)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, bit for bit: a NaN equals itself, and 0 differs from -0."""
    return torch.equal(_integers(one), _integers(other))


def _integers(tensor: Tensor) -> Tensor:
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.contiguous().view(_WORDS[plain.element_size()])


def _place_of(learner: Learning) -> str:
    places = [(name, tuple(param.shape), place(param)) for name, param in learner.model.named_parameters()]
    return hashlib.sha256(repr(places).encode()).hexdigest()


def _listed(ranks: Sequence[int]) -> str:
    return " and ".join(map(str, ranks)) if len(ranks) < 3 else ", ".join(map(str, ranks))
