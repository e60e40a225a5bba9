"""One model cut into parts: each rank keeps a part of every parameter, and gathers a block when it computes with it.

This is FSDP2 (`fully_shard`): parameters become DTensors under their own names, gradients come back cut in the same
way, and the optimizer works on the parts. The repeated blocks are gathered one at a time; what is not in one of them
is gathered with the model itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from headrace.errors import OptionError
from headrace.train.parallel.blocks import repeated_blocks
from headrace.train.parallel.buffers import share
from headrace.train.parallel.exposed import NOTHING, Exposed
from headrace.train.parallel.timed import WaitTimer


class Sharded:
    """The model as a rank trains it: its own class, with its parameters cut over the ranks of the mesh."""

    needs_equal_passes = True
    """Every forward and backward pass gathers parameters, so all ranks must make equally many."""

    def __init__(self, model: nn.Module, devices: DeviceMesh, precision: str) -> None:
        """Cut it over a mesh of one axis, or of two, along whose first it is copied. Collective.

        Every rank must have the same model. Raises OptionError for a block with trained parameters of several dtypes.
        """
        blocks = repeated_blocks(model)
        _check_dtypes(model, blocks)
        policy = _POLICIES[precision]
        for block in blocks:
            fully_shard(block, mesh=devices, mp_policy=policy)
        self._root = fully_shard(model, mesh=devices, mp_policy=policy)
        self.model = self.module = model
        self._cut = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._timer = WaitTimer() if devices.device_type == "cpu" else None
        if self._timer is not None:
            self._timer.watch(self._cut)

    @contextmanager
    def reducing(self, reduce: bool) -> Iterator[None]:
        """Whether the backward pass inside reduces gradients (the last of a step) or only adds them up."""
        self._root.set_requires_gradient_sync(reduce)
        self._root.set_is_last_backward(reduce)
        yield

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes rank 0's values. Collective."""
        share(tensors)

    def settle(self) -> None:
        """After forward passes that no backward pass follows: let go of what they gathered."""
        for module in self._cut:
            module.reshard()
        if self._timer is not None:
            self._timer.take()  # what these passes waited for is of no step

    def end_backward(self) -> None:
        """Nothing to do: gathering and reducing lie within the passes."""

    def exposed(self) -> Exposed:
        """How long the step's passes waited for their parts; on a GPU that is not known apart from compute."""
        return NOTHING if self._timer is None else self._timer.take()


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


_BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
_POLICIES = {
    "fp32": MixedPrecisionPolicy(),
    "bf16": _BF16,
    "fp16": MixedPrecisionPolicy(param_dtype=torch.float16, reduce_dtype=torch.float32),
    "float8": _BF16,
}
"""With all but fp32 parameters are gathered in half the bytes; gradients are added up in fp32."""
