"""Which sample comes when. Pure arithmetic: no I/O, no threads, no torch."""

from headrace.order.batches import Batches, check_world_size, default_partitions
from headrace.order.blocks import default_block_bytes
from headrace.order.epoch import EpochOrder, Order, Places, Run
from headrace.order.keyed import derive_key, permutation
from headrace.order.mixing import Mixing
from headrace.order.mixture import MixedOrder, Stretch
from headrace.order.shares import Share, dealt

__all__ = [
    "Batches",
    "EpochOrder",
    "MixedOrder",
    "Mixing",
    "Order",
    "Places",
    "Run",
    "Share",
    "Stretch",
    "check_world_size",
    "dealt",
    "default_block_bytes",
    "default_partitions",
    "derive_key",
    "permutation",
]
