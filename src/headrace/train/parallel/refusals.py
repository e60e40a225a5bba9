"""Models that cannot be trained, told before they take their place on a mesh, or right after."""

from __future__ import annotations

from torch import nn

from headrace.errors import OptionError
from headrace.train.world import World


def check_memory(model: nn.Module) -> None:
    """Raise OptionError, naming it, for a parameter or buffer that has no values."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise OptionError(
                f"a model must have its values before it is trained: {name} lies on device meta; make it without "
                "torch.device('meta'), or call model.to_empty(device='cpu') and set every value"
            )


def check_stage(own: nn.Module, world: World) -> None:
    """A stage that is frozen has nothing to optimize; said by all ranks, of which it may be one. Collective."""
    found = world.gather(any(param.requires_grad for param in own.parameters()))
    idle = [str(rank) for rank, some in enumerate(found) if not some]
    if idle:
        raise OptionError(
            f"every stage of a pipeline needs parameters to train: that of rank {', '.join(idle)} is frozen whole; "
            "name other beginnings in pp_stages, or take a mesh without pp"
        )
