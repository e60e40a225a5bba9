"""Statistics that layers keep, which each process makes from its own samples."""

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor


def share(tensors: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Give every process of a group (None: all) its first one's values. Collective; of one process nothing is done."""
    if dist.is_initialized() and dist.get_world_size(group) > 1:
        for tensor in tensors:
            dist.broadcast(tensor, group=group, group_src=0)
