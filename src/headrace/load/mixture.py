"""How the datasets of a stream are mixed: their weights, from which step on, and how long an epoch is."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from headrace.errors import OptionError
from headrace.order import MixedOrder, Mixing, Order, Stretch


@dataclass(frozen=True, slots=True)
class Mixture:
    """A frozen description; `headrace.mix` makes it."""

    schedule: tuple[tuple[int, tuple[Fraction, ...]], ...]
    """(step, shares of samples from that step on, one a source), the first for step 0."""
    samples_per_epoch: int

    def order(
        self, sources: tuple[Order, ...], seed: int, global_batch_size: int | None, drop_last: bool
    ) -> MixedOrder:
        """The order of the sources' samples. Raises OptionError for a schedule where nobody counts steps."""
        first = sources[0]
        mixed = tuple(
            self._stretch(step, shares, first, self._place(step, global_batch_size, drop_last))
            for step, shares in self.schedule
        )
        return MixedOrder(sources, mixed, self.samples_per_epoch, seed, first.shuffle, first.partitions)

    def _stretch(self, step: int, shares: tuple[Fraction, ...], order: Order, place: tuple[int, int]) -> Stretch:
        present = tuple(k for k, share in enumerate(shares) if share)
        mixing = Mixing(tuple(shares[k] for k in present), order.partitions if order.shuffle else 1)
        return Stretch(*place, present, mixing)

    def _place(self, step: int, global_batch_size: int | None, drop_last: bool) -> tuple[int, int]:
        """The epoch and position at which a step begins."""
        if step == 0:
            return 0, 0
        if global_batch_size is None:
            raise OptionError("a schedule of weights counts the steps of a headrace.Loader: use one, or fixed weights")
        full, rest = divmod(self.samples_per_epoch, global_batch_size)
        epoch, within = divmod(step, max(1, full if drop_last or not rest else full + 1))
        return epoch, within * global_batch_size
