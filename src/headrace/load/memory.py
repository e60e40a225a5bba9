"""How many bytes of stored data a reader may hold: what its open windows need, twice, and some read-ahead."""

from __future__ import annotations

from headrace.dataset import Dataset, Joined
from headrace.dataset.pieces import Pieces
from headrace.errors import OptionError
from headrace.load.host import available_memory_bytes
from headrace.order import MixedOrder, Order
from headrace.rank import local_world_size

READ_AHEAD_BYTES = 64 << 20
"""What may be read ahead of need by default, besides the windows that are open."""
REMOTE_READ_AHEAD_BYTES = 512 << 20
"""The same from a store: the more of the plan is known to fit, the more of it is read by large requests."""


def memory_bytes(
    order: Order | MixedOrder,
    dataset: Dataset | Joined,
    num_open: int,
    num_peers: int,
    num_local: int,
    given: int | None = None,
) -> int:
    """Bytes of samples to hold at most for `num_open` partitions that are read side by side, if none are `given`.

    `num_peers` readers share the dataset, `num_local` of them this machine. Raises OptionError if there is less memory
    than the open windows need.
    """
    pieces = dataset.pieces
    all_bytes = int(pieces.bytes.sum())
    needed = min(num_open * order.open_bytes, all_bytes)
    rule = f"memory must hold the open windows of this rank's {num_open} partitions, {needed:,} bytes"
    if given is not None:
        if given < needed:
            raise OptionError(f"{rule}: got {given:,}; give more, or {_way_out(pieces)}")
        return given
    most = available_memory_bytes() // (2 * num_local)
    if needed > most:
        raise OptionError(f"{rule}, and half of what this machine has free is {most:,}: {_way_out(pieces)}")
    ahead = REMOTE_READ_AHEAD_BYTES if dataset.is_remote else READ_AHEAD_BYTES
    return min(most, 2 * needed + min(ahead, all_bytes // num_peers))


def rank_memory_bytes(
    order: Order | MixedOrder, dataset: Dataset | Joined, num_ranks: int, given: int | None = None
) -> int:
    """The same for the loader of one of `num_ranks` ranks, for its partitions, if none are `given`."""
    num_open = order.partitions // num_ranks if order.shuffle else 1
    return memory_bytes(order, dataset, num_open, num_ranks, local_world_size(), given)


def _way_out(pieces: Pieces) -> str:
    if pieces.largest_whole_bytes:
        return (
            f"repack the dataset (headrace pack), of which parts of up to {pieces.largest_whole_bytes:,} bytes are "
            "unpacked as a whole, or choose fewer partitions"
        )
    return "choose a smaller block_size or window"
