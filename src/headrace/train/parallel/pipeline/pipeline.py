"""Several processes compute a model's stages one after the other, on micro-batches that follow each other.

torch's schedules (GPipe, 1F1B, interleaved 1F1B) send on what stages make, and say which micro-batch a stage turns to
next. They want equally many micro-batches at each step, all of one shape: what a batch lacks is filled up with repeats
that count for nothing. The last stage alone judges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from headrace.train.parallel.buffers import share
from headrace.train.parallel.exposed import NOTHING, Exposed
from headrace.train.parallel.pipeline.timed import TimedStage
from headrace.train.randomness import undisturbed

STAGES_A_RANK = {"gpipe": 1, "1f1b": 1, "interleaved": 2}
"""How many stages a process has under each schedule."""

Judge = Callable[[Any, int], Tensor]
"""From a micro-batch's output and its number to its part of the loss."""


class Stage(nn.Module):
    """A stage as the schedule calls it: under the run's precision, and once before the run, to learn shapes."""

    def __init__(
        self, module: nn.Module, casting: Callable[[], AbstractContextManager[Any]], device: torch.device
    ) -> None:
        super().__init__()
        self.module = module
        self._device = device
        self._casting = casting
        self._calls = 0
        self._kept: list[tuple[Tensor, Tensor]] = []

    def expect_try(self) -> None:
        """The next call is a schedule's first, on made-up values."""
        self._calls = 0

    def forward(self, *arguments: Any) -> Any:
        """The stage's output. What the first call, a try on made-up values, does to statistics the second undoes."""
        self._calls += 1
        if self._calls == 1:
            self._kept = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
            with undisturbed(self._device), self._casting():
                return self.module(*arguments)
        if self._calls == 2:
            with torch.no_grad():
                for buffer, value in self._kept:
                    buffer.copy_(value)
            self._kept = []
        with self._casting():
            return self.module(*arguments)


@dataclass(frozen=True, slots=True)
class Line:
    """The processes of one pipeline, of which this is one."""

    group: dist.ProcessGroup
    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this process takes in what the model is called with."""
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        """Whether this process has the model's output."""
        return self.rank == self.size - 1

    def of_last(self, value: Any) -> Any:
        """The last process's value, on all. Collective over the line."""
        answer = [value]
        dist.broadcast_object_list(answer, group=self.group, group_src=self.size - 1)
        return answer[0]


class Pipeline:
    """The stages that this process has, run by a schedule."""

    needs_equal_passes = True

    def __init__(
        self,
        own: nn.Module,
        stages: Mapping[int, Stage],
        line: Line,
        device: torch.device,
        schedule: str,
        num_micro_batches: int,
        peers: dist.ProcessGroup | None,
    ) -> None:
        """`own` has the stages' layers under the model's names; stages are by their number among all.

        `peers` have the same stages of other pipelines; None: there are none.
        """
        self.model = self.module = own
        self.line = line
        self._peers = peers
        self._device = device
        self._judge: Judge | None = None
        self._tried = False
        self._stages = list(stages.values())
        self._begun: set[str] = set()
        self._which = torch.arange(num_micro_batches)
        self._timed = _placed(schedule, stages, line, device)
        self._training = _schedule(schedule, self._timed, num_micro_batches, self._judged)
        self._running = _schedule(schedule, _placed(schedule, stages, line, device), num_micro_batches, None)
        self._waited_sec = self._judging_sec = 0.0

    def learn(self, arguments: tuple[Any, ...], judge: Judge) -> None:
        """Forward and backward passes of all micro-batches; on the last process `judge` gives each its loss.

        `arguments` are the model's for all of them together. Gradients are added up. Collective.
        """
        self._judge = judge
        self._begin("training")
        began = time.perf_counter()
        self._training.step(
            *(arguments if self.line.is_first else ()),
            target=self._which if self.line.is_last else None,
            return_outputs=False,
        )
        worked_sec = self._judging_sec + sum(stage.take_sec() for stage in self._timed)
        self._judging_sec = 0.0
        self._waited_sec = time.perf_counter() - began - worked_sec

    def run(self, arguments: tuple[Any, ...]) -> Any:
        """The model's output for all micro-batches together, on the last process; None on others. Collective."""
        self._begin("running")
        return self._running.step(*(arguments if self.line.is_first else ()))

    def _begin(self, schedule: str) -> None:
        """Each of the two tries its stages out before its first run."""
        if schedule not in self._begun:
            self._begun.add(schedule)
            for stage in self._stages:
                stage.expect_try()

    def _judged(self, output: Any, which: Tensor) -> Tensor:
        """The first call is a try, as a stage's: of made-up values a loss function of the user's is not asked."""
        assert self._judge is not None
        if self._tried:
            began = time.perf_counter()
            judged = self._judge(output, int(which))
            self._judging_sec += time.perf_counter() - began
            return judged
        self._tried = True
        one = output if isinstance(output, Tensor) else next(part for part in output if part.requires_grad)
        return one.float().sum()

    def reducing(self, reduce: bool) -> AbstractContextManager[Any]:
        """The schedule says itself when gradients are reduced."""
        return nullcontext()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values of the first that has its stages. Collective."""
        if self._peers is not None:
            share(tensors, self._peers)

    def settle(self) -> None:
        """After forward passes that no backward pass follows."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def end_backward(self) -> None:
        """Nothing to do: what stages wait for lies within the passes."""

    def exposed(self) -> Exposed:
        """How long the passes waited for other stages; on a GPU that is not known apart from compute."""
        return Exposed(self._waited_sec) if self._device.type == "cpu" else NOTHING


def _placed(name: str, stages: Mapping[int, Stage], line: Line, device: torch.device) -> list[TimedStage]:
    total = line.size * STAGES_A_RANK[name]
    return [TimedStage(stage, number, total, device, group=line.group) for number, stage in stages.items()]


def _schedule(
    name: str, stages: list[TimedStage], num_micro_batches: int, loss: Callable[[Any, Tensor], Tensor] | None
) -> Any:
    if name == "interleaved":
        return ScheduleInterleaved1F1B(list(stages), num_micro_batches, loss_fn=loss, scale_grads=False)
    kind = ScheduleGPipe if name == "gpipe" else Schedule1F1B
    return kind(stages[0], num_micro_batches, loss_fn=loss, scale_grads=False)
