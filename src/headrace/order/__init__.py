"""Which sample comes when. Pure arithmetic: no I/O, no threads, no torch."""

from headrace.order.batches import Batches, check_world_size, default_partitions
from headrace.order.epoch import EpochOrder, Order, Places, Run
from headrace.order.keyed import derive_key, permutation

__all__ = [
    "Batches",
    "EpochOrder",
    "Order",
    "Places",
    "Run",
    "check_world_size",
    "default_partitions",
    "derive_key",
    "permutation",
]
