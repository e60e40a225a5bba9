"""Steps and evaluations of a model whose stages lie on several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from headrace.errors import TrainingError
from headrace.train.batches import Batch, filled, first_rows, micro_batches
from headrace.train.objective import Judgement, Objective
from headrace.train.parallel import Pipeline
from headrace.train.tally import Tally


class PipelinedPasses:
    """Runs batches through a pipeline, in as many micro-batches of as many rows as its schedule has."""

    def __init__(self, pipeline: Pipeline, objective: Objective, num_micro_batches: int, micro_batch_size: int) -> None:
        self.rows = num_micro_batches * micro_batch_size
        """Samples that one run takes."""
        self._pipeline = pipeline
        self._objective = objective
        self._size = micro_batch_size
        self._names: list[str] | None = None
        self._weighted = False
        self._spare: Batch | None = None

    def learn(self, batch: Batch, rows: int, share: Callable[[float | Tensor], Any], tally: Tally) -> bool:
        """Gradients of a batch of `rows` samples, counted in `tally`; whether the loss has weights of its own.

        `share` turns a weight into the loss's factor. Collective.
        """
        whole = self._whole(batch, rows)
        parts = [(part, max(0, min(self._size, rows - first))) for first, part in self._parts(whole)]
        judged: dict[int, Judgement] = {}

        def judge(output: Any, number: int) -> Tensor:
            part, part_rows = parts[number]
            if part_rows == 0:
                nothing: Tensor = output.sum() * 0.0
                return nothing
            real = first_rows(part, part_rows, self._size)
            found = judged[number] = self._objective.judge(output[:part_rows], real, part_rows)
            scaled: Tensor = found.loss * share(found.weight)
            return scaled

        self._pipeline.learn(self._objective.arguments(whole), judge)
        for number in sorted(judged):
            tally.add(judged[number], parts[number][1])
        return self._agree(tally, any(one.weighted for one in judged.values()))

    def judgement(self, batch: Batch, rows: int) -> Judgement | None:
        """What the last stage's process finds of at most `rows` samples; None on others, and of none. Collective."""
        whole = self._whole(batch, rows)
        output = self._pipeline.run(self._objective.arguments(whole))
        if not self._pipeline.line.is_last or rows == 0:
            return None
        real = first_rows(whole, rows, self.rows)
        return self._objective.judge(output[:rows], real, rows)

    def add_over_stages(self, value: Tensor) -> None:
        """Make a value the sum over the processes of the pipeline. Collective."""
        dist.all_reduce(value, group=self._pipeline.line.group)

    def _whole(self, batch: Batch, rows: int) -> Batch:
        if rows:
            whole = filled(batch, rows, self.rows)
            self._spare = whole
        if self._spare is None:
            raise TrainingError(
                "a process got no sample in its first batch: all were filtered or skipped; use a larger batch, or "
                "filter before streaming (ds.select)"
            )
        return whole if rows else self._spare

    def _parts(self, whole: Batch) -> Iterator[tuple[int, Batch]]:
        first = 0
        for part, part_rows in micro_batches(whole, self.rows, self._size):
            yield first, part
            first += part_rows

    def _agree(self, tally: Tally, weighted: bool) -> bool:
        """What only the last process knows, told to all once: which values its loss function gives."""
        if self._names is None:
            self._names, self._weighted = self._pipeline.line.of_last((tally.names, weighted))
        tally.expect(self._names)
        return self._weighted
