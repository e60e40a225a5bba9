"""What the Trainer asks of a loader. `headrace.Loader` has it; so may any object of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class LoaderLike(Protocol):
    """An iterable of batches (dicts) whose position can be saved.

    Every rank has one of its own, over its share of each global batch, with the same number of steps; ranks that
    compute together (tp, pp) have the same share, which `headrace.rank.resolve_rank()` says. Where it has `restarts`,
    a list of dataclasses that grows, the Trainer writes them to the run's events.
    """

    @property
    def epochs(self) -> int | None:
        """How many epochs one iteration has; None: endless."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch, at least 1."""

    @property
    def global_batch_size(self) -> int:
        """Samples of a full batch over all ranks."""

    @property
    def full_batches(self) -> bool:
        """Whether every local batch surely has its equal share of global_batch_size real samples."""

    def __iter__(self) -> Iterator[dict[str, Any]]: ...

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch given out, a JSON value that is the same on every rank."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a saved position at the next iteration."""

    def meters(self) -> dict[str, Any]:
        """What its stages counted so far: `stages`, `threads`, `dropped`, `padded`, `skipped`."""
