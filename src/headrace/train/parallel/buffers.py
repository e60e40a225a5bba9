"""Statistics that layers keep, which each process makes from its own samples."""

import torch.distributed as dist
from torch import nn


def share_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers. Collective; with one process nothing is to be done."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
