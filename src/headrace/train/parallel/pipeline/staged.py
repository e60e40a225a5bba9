"""This process's stages of a model, for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from headrace.errors import OptionError
from headrace.train.parallel.pipeline.pipeline import Pipeline

StagedLoss = Callable[[Any, Tensor], Tensor]
"""From the model's output for some samples and their targets to the mean loss."""


class Staged(nn.Module):
    """What `parallelize` returns for a mesh with pp: a schedule runs forward and backward passes together, so a loop
    calls `learn` where it would call the model and `backward`. Parameters are those of this process's stages, under
    the model's names. Every method is collective over the mesh.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        num_micro_batches: int,
        casting: Callable[[], AbstractContextManager[Any]],
        device: torch.device,
    ) -> None:
        """`casting` gives what the loss runs in."""
        super().__init__()
        for kind in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            getattr(self, kind).update(getattr(pipeline.model, kind))  # so that names are the model's
        self._pipeline = pipeline
        self._number = num_micro_batches
        self._casting = casting
        self._device = device
        self._rows: dict[str, int] = {}

    @property
    def group(self) -> dist.ProcessGroup:
        """The processes that have the other stages, for a norm over all gradients, say."""
        return self._pipeline.line.group

    def learn(self, *inputs: Tensor, target: Tensor, loss: StagedLoss) -> Tensor:
        """Add the gradients of the mean loss over a batch, and return that mean, on every process of this pipeline.

        Args:
            inputs: what the model is called with, the samples of a batch first; every process of a pipeline has the
                same ones, equally many at every call.
            target: what `loss` compares with, a row a sample.
            loss: function(output, target) -> mean over the samples it is given, a micro-batch's.

        Raises OptionError for a batch that does not divide by the micro-batches, or of another size than the first.
        """
        if len(target) != self._size("learn", len(target)):
            raise OptionError(
                f"stages of a pipeline have room for batches of one size: got {len(target)} samples after "
                f"{self._rows['learn']}; drop the last short batch, or fill it up"
            )
        targets = target.tensor_split(self._number)
        means: list[Tensor] = []

        def judge(output: Any, number: int) -> Tensor:
            with self._casting():
                mean = loss(output, targets[number]) / self._number
            means.append(mean.detach().float())
            return mean

        self._pipeline.learn(inputs, judge)
        total = torch.stack(means).sum() if means else torch.zeros((), device=self._device)
        dist.broadcast(total, group=self.group, group_src=self._pipeline.line.size - 1)
        return total

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        """The model's output for a batch, without gradients, on the last process of a pipeline; None on others.

        Raises OptionError for a batch that is larger than the first one was; smaller ones may follow.
        """
        rows = len(inputs[0])
        room = self._size("forward", rows)
        if rows > room:
            raise OptionError(
                f"stages of a pipeline have room for batches as large as the first: got {rows} samples after {room}"
            )
        output = self._pipeline.run(tuple(_filled(one, room) for one in inputs))
        self._pipeline.settle()
        return None if output is None else tree_map_only(Tensor, lambda one: one[:rows], output)

    def _size(self, call: str, rows: int) -> int:
        """How many samples its batches have, from the first on."""
        if call not in self._rows and rows % self._number:
            raise OptionError(
                f"with pipeline stages a batch must divide by pp_micro_batches, {self._number}: got {rows} samples; "
                "drop the last short batch, or choose another number"
            )
        return self._rows.setdefault(call, rows)


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """With its last row repeated, up to so many."""
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) if missing else tensor
