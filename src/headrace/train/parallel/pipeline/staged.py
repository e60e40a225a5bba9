"""This process's stages of a model, for a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from headrace.errors import OptionError
from headrace.train.parallel.pipeline.pipeline import Pipeline

StagedLoss = Callable[[Any, Tensor], Tensor]
"""From the model's output for some samples and their targets to the mean loss."""


class Staged(nn.Module):
    """What `parallelize` returns for a mesh with pp: a schedule runs forward and backward passes together, so a loop
    calls `learn` where it would call the model and `backward`. Parameters are those of this process's stages, under
    the model's names. Every method is collective over the mesh.
    """

    def __init__(self, pipeline: Pipeline, num_micro_batches: int, device: torch.device) -> None:
        super().__init__()
        self.module = pipeline.model
        self._pipeline = pipeline
        self._number = num_micro_batches
        self._device = device

    @property
    def group(self) -> dist.ProcessGroup:
        """The processes that have the other stages, for a norm over all gradients, say."""
        return self._pipeline.line.group

    def learn(self, *inputs: Tensor, target: Tensor, loss: StagedLoss) -> Tensor:
        """Add the gradients of the mean loss over a batch, and return that mean, on every process.

        Args:
            inputs: what the model is called with, the samples of a batch first; every process of a pipeline has the
                same ones, equally many at each call.
            target: what `loss` compares with, a row a sample.
            loss: function(output, target) -> mean over the samples it is given, a micro-batch's.

        Raises OptionError for a batch that does not divide by the micro-batches.
        """
        self._check(target)
        targets = target.tensor_split(self._number)
        means: list[Tensor] = []

        def judge(output: Any, number: int) -> Tensor:
            mean = loss(output, targets[number]) / self._number
            means.append(mean.detach().float())
            return mean

        self._pipeline.learn(inputs, judge)
        total = torch.stack(means).sum() if means else torch.zeros((), device=self._device)
        dist.broadcast(total, group=self.group, group_src=self._pipeline.line.size - 1)
        return total

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Any:
        """The model's output for a batch, without gradients, on the last process of a pipeline; None on others."""
        self._check(inputs[0])
        output = self._pipeline.run(inputs)
        self._pipeline.settle()
        return output

    def _check(self, rows: Tensor) -> None:
        if len(rows) % self._number:
            raise OptionError(
                f"with pipeline stages a batch must divide by pp_micro_batches, {self._number}: got {len(rows)} "
                "samples; drop the last short batch, or choose another number"
            )
