"""What a checkpoint has of a model that ZeRO cuts: the same names and shapes as without, each cut over the ranks.

So a run goes on at another number of processes, at another stage, on a mesh, or without DeepSpeed; and from any of
these to here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from headrace.train.dtensors import whole
from headrace.train.engines.deepspeed.zero import PartitionedOptimizer, Zero
from headrace.train.snapshot import Learner


class PartitionedLearner(Learner):
    """A learner whose optimizer has flat partitions, and whose weights lie on all ranks or are partitions too."""

    distributed: Zero
    optimizer: PartitionedOptimizer

    @property
    def optimizer_name(self) -> str:
        """What kind of optimizer it is."""
        return type(self.optimizer.own).__name__

    def adopt(
        self,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Mapping[str, Any]],
        seed: int,
        sharing: tuple[int, int] = (1, 1),
    ) -> None:
        """Go on from what was read into `room`. Collective."""
        if self.distributed.cuts_weights:
            for name, param in self.model.named_parameters():
                if f"model.{name}" in tensors:
                    self.distributed.set_weights(param, whole(tensors[f"model.{name}"]))
        super().adopt(tensors, numbers, seed, sharing)

    def _model_tensors(self) -> dict[str, Tensor]:
        found = super()._model_tensors()
        if self.distributed.cuts_weights:
            for name, param in self.model.named_parameters():
                if f"model.{name}" in found:
                    found[f"model.{name}"] = self.distributed.weights(param)
        return found

    def _optimizer_values(self) -> Iterator[tuple[str, str, Any]]:
        for name, param in self._params().items():
            for key, value in self.optimizer.values(param).items():
                yield name, str(key), value

    def _optimizer_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        partitions = self.optimizer.partitions
        for name, param in self._params().items():
            length = partitions.piece(param).flat.shape
            for key, value in self.optimizer.values(param).items():
                if isinstance(value, Tensor):
                    yield name, str(key), partitions.gathered(param, value) if value.shape == length else value

    def _room_for(self, name: str, entry: TensorStorageMetadata) -> Tensor:
        param_name = name.removeprefix("optimizer.").rpartition(".")[0]
        if entry.size == self.shapes.get(param_name):
            return self.optimizer.partitions.room(entry.size, entry.properties.dtype)
        return torch.empty(entry.size, dtype=entry.properties.dtype)
