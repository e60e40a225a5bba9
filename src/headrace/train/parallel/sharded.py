"""One model cut into parts: each rank keeps a part of every parameter, and gathers a block when it computes with it.

This is FSDP2 (`fully_shard`): parameters become DTensors under their own names, gradients come back cut in the same
way, and the optimizer works on the parts. The repeated blocks are gathered one at a time; what is not in one of them
is gathered with the model itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from headrace.errors import OptionError
from headrace.train.parallel.blocks import repeated_blocks
from headrace.train.parallel.exposed import NOTHING, Exposed
from headrace.train.parallel.mesh import Mesh
from headrace.train.world import World


class Sharded:
    """The model as a rank trains it: its own class, with its parameters cut over the ranks of the mesh."""

    needs_equal_passes = True
    """Every forward and backward pass gathers parameters, so all ranks must make equally many."""

    def __init__(self, model: nn.Module, world: World, mesh: Mesh, precision: str) -> None:
        """Cut it, after giving every rank rank 0's parameters and buffers. Collective.

        Raises OptionError for a block with trained parameters of several dtypes.
        """
        blocks = repeated_blocks(model)
        _check_dtypes(model, blocks)
        _share(model)
        sizes = {name: size for name, size in (("dp", mesh.dp), ("fsdp", mesh.fsdp)) if name == "fsdp" or size > 1}
        devices = init_device_mesh(world.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
        policy = _POLICIES[precision]
        for block in blocks:
            fully_shard(block, mesh=devices, mp_policy=policy)
        self._root = fully_shard(model, mesh=devices, mp_policy=policy)
        self.model = self.module = model
        self._cut = [module for module in model.modules() if isinstance(module, FSDPModule)]

    @contextmanager
    def reducing(self, reduce: bool) -> Iterator[None]:
        """Whether the backward pass inside reduces gradients (the last of a step) or only adds them up."""
        self._root.set_requires_gradient_sync(reduce)
        self._root.set_is_last_backward(reduce)
        yield

    def settle(self) -> None:
        """After forward passes that no backward pass follows: let go of what they gathered."""
        for module in self._cut:
            module.reshard()

    def end_backward(self) -> None:
        """Nothing is measured: gathering and reducing lie within the passes."""

    def exposed(self) -> Exposed:
        """Not known apart from compute."""
        return NOTHING


def _check_dtypes(model: nn.Module, blocks: list[nn.Module]) -> None:
    """Gradients reduced together must be of one dtype: of each block, and of what is in none; frozen ones have none."""
    names = {id(param): name for name, param in model.named_parameters() if param.requires_grad}
    for block in (*blocks, model):
        own = {param.dtype: names.pop(id(param)) for param in block.parameters() if id(param) in names}
        if len(own) > 1:
            found = ", ".join(f"{name} is {dtype}" for dtype, name in own.items()).replace("torch.", "")
            raise OptionError(
                f"fsdp reduces a block's gradients together, so trained parameters must be of one dtype: {found}; "
                "convert the model by model.to(dtype), or freeze those of one dtype"
            )


def _share(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, src=0)


_POLICIES = {
    "fp32": MixedPrecisionPolicy(),
    "bf16": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
}
"""With bf16 parameters are gathered in half the bytes; gradients are added up in fp32."""
