"""Where a PyTorch DataLoader over a stream stands after so many batches, by arithmetic: it keeps no state of its own.

A DataLoader takes whole batches from its workers in turn, until each has given all it has. So the number of batches
tells how many samples each worker's share has given, and whose turn is next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import StateError
from headrace.load.state import VERSION, check_same, check_samples_state, partitions_of
from headrace.order import MixedOrder, Order, Share, dealt
from headrace.rank import Rank

_NUMBERS = ("first_epoch", "batches", "batch_size", "num_workers", "world_size")


@dataclass(frozen=True)
class Start:
    """After how many batches of which DataLoader a stream goes on."""

    batches: int
    batch_size: int
    num_workers: int
    drop_last: bool
    world_size: int
    partitions: int

    @staticmethod
    def loaded(state: Mapping[str, Any], order: Mapping[str, Any]) -> Start:
        """What a state says. Raises StateError if it is none, or of a stream whose order is another."""
        check_samples_state(state, _NUMBERS, order)
        drop_last, partitions = state.get("drop_last"), partitions_of(state)
        if not isinstance(drop_last, bool) or partitions is None or state["batch_size"] < 1 or state["world_size"] < 1:
            raise StateError(f"a state of a DataLoader is what state_after() gives: got {dict(state)}")
        numbers = {name: state[name] for name in _NUMBERS[1:]}
        return Start(**numbers, drop_last=drop_last, partitions=partitions)

    def state(self, first_epoch: int, order: Mapping[str, Any]) -> dict[str, Any]:
        """The same as a small JSON value."""
        numbers = {"first_epoch": first_epoch} | {name: getattr(self, name) for name in _NUMBERS[1:]}
        return {"version": VERSION, **numbers, "drop_last": self.drop_last, "order": dict(order)}

    def check(self, rank: Rank, num_workers: int) -> None:
        """Raises StateError where the DataLoader has another number of workers, or the run of ranks."""
        check_same("world size", self.world_size, rank.world_size, f"start {self.world_size} ranks")
        check_same("workers", max(1, self.num_workers), num_workers, f"give num_workers={self.num_workers}")

    def place(self, worker: int, order: Order | MixedOrder, rank: Rank, epochs: int | None) -> tuple[int, int]:
        """Whose share a worker goes on with, and how many samples of it are taken, counted over epochs.

        Raises OptionError where an iteration of `epochs` epochs has fewer batches.
        """
        num_readers = max(1, self.num_workers)
        shares = [Share(order, rank.rank, rank.world_size, reader, num_readers) for reader in range(num_readers)]
        had, following = dealt(self.batches, [self._num_batches(share.num_samples, epochs) for share in shares])
        # The new DataLoader begins with its worker 0, so that one goes on with the share whose turn is next.
        reader = (worker + following) % num_readers
        taken, each = had[reader] * self.batch_size, shares[reader].num_samples
        return reader, taken if epochs is None else min(taken, epochs * each)

    def _num_batches(self, num_samples: int, epochs: int | None) -> float:
        if epochs is None:
            return float("inf") if num_samples else 0
        full, rest = divmod(epochs * num_samples, self.batch_size)
        return full if self.drop_last or not rest else full + 1
