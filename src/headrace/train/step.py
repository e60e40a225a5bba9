"""One training step: gradients of the mean over all real samples of the global batch, however they are cut.

Ranks and micro-batches may differ in size (a filter, the padded end of an epoch, tokens as weights), so a mean of their
means would be wrong. Each micro-batch's mean goes backward times weight / expected, where `expected` is the weight a
full rank has; the reduction averages that over the shares of the data; and the sum of all weights, which arrives
meanwhile, gives the factor shares * expected / total that makes it the global mean. The factor is exactly 1, and left
out, whenever all batches are full.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from headrace.errors import TrainingError
from headrace.train.batches import Batch, micro_batches, num_parts
from headrace.train.dtensors import part, squared_norms, total_norm
from headrace.train.guards import RunningStatistics, step_if
from headrace.train.loss_scale import LossScale, Scaled
from headrace.train.objective import Objective
from headrace.train.parallel import NOTHING, Distributed, Exposed, Mesh, Reducer, Traffic
from headrace.train.pipelined import PipelinedPasses
from headrace.train.tally import Sum, Tally, Totals
from headrace.train.world import World

Lap = Callable[[str], object]
"""See `Clock.lap`."""


@dataclass(slots=True)
class Outcome:
    """What a step left behind: sums that may still be on their way."""

    number: int
    sums: Sum
    exposed: Exposed
    guarded: bool = False
    """Whether a step that is not finite was left out, so that it is no error."""
    traffic: Traffic | None = None
    """Gradients that this rank sent; None: it sent none by itself."""
    scaled: Scaled | None = None
    """What came of scaling the loss; None: it was not."""

    @property
    def overflowed(self) -> bool:
        """Whether scaled gradients were too large, so that the step was left out."""
        return self.scaled is not None and self.scaled.overflowed

    def totals(self, world: World) -> Totals:
        """The step over all ranks; on a GPU waits until the device is done with it.

        Raises TrainingError, on all ranks, when the loss or the norm of the gradients is not finite and nobody guards.
        """
        totals = self.sums.totals()
        if self.guarded:
            return totals
        if not totals.finite:
            self._raise(world, totals)
        return totals

    def _raise(self, world: World, totals: Totals) -> None:
        for name, value in (("gradients", totals.grad_norm), ("loss", totals.loss)):
            if value is not None and not math.isfinite(value):
                raise self._not_finite(world, name, value)

    def _not_finite(self, world: World, name: str, value: float) -> TrainingError:
        finite = world.gather(math.isfinite(self.sums.own_loss()))
        ranks = [str(rank) for rank, own in enumerate(finite) if not own]
        where = f"the loss of rank {', '.join(ranks)} is not finite" if ranks else "the loss is finite on every rank"
        return TrainingError(
            f"the {name} of step {self.number} must be finite: got {value}; {where}: "
            "lower the learning rate, or look for a broken sample"
        )


class Stepper:
    """Makes steps: forward, backward, correction, clipping, optimizer."""

    def __init__(
        self,
        world: World,
        distributed: Distributed,
        objective: Objective,
        optimizer: Optimizer,
        reducer: Reducer,
        scale: LossScale | None,
        *,
        mesh: Mesh,
        rank_batch_size: float,
        full_batches: bool,
        micro_batch_size: int | None,
        pipelined: PipelinedPasses | None,
        clip_grad_norm: float | None,
        guarded: bool = False,
    ) -> None:
        """`scale`: what the loss is multiplied by; None: nothing. `rank_batch_size` is the weight of a full batch of a
        rank; `full_batches`: there are no others. `guarded`: a step that is not finite changes nothing.
        """
        self._world = world
        self._copies = mesh.tp
        self._data_size = mesh.data_size
        self._distributed = distributed
        self._objective = objective
        self._optimizer = optimizer
        self._reducer = reducer
        self._scale = scale
        self._expected = float(rank_batch_size)
        self._full = full_batches
        self._micro = micro_batch_size
        self._pipelined = pipelined
        self._clip = clip_grad_norm
        self._statistics = RunningStatistics(distributed.model) if guarded else None
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._params = [p for p in distributed.model.parameters() if id(p) in trained]
        self._rates = [group["lr"] for group in optimizer.param_groups]
        self._spare: tuple[Batch, int] | None = None
        self._checked = world.size == 1
        self._waits = world.size > 1 and world.device.type == "cpu"
        self._passes = num_parts(rank_batch_size, micro_batch_size) if distributed.needs_equal_passes else None

    def set_rate(self, multiplier: float) -> float:
        """Multiply the optimizer's learning rates for the next step; returns the first group's."""
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * multiplier
        return float(self._optimizer.param_groups[0]["lr"])

    def step(
        self,
        batch: Batch,
        rows: int,
        number: int,
        stop: Callable[[], bool],
        lap: Lap,
        around: AbstractContextManager[None],
    ) -> Outcome:
        """Learn from a batch of `rows` real samples; `stop` says whether this rank was asked to stop. Collective.

        `lap` is called with the kind of work that is done: forward, backward (or passes), communication, optimizer; on
        a device also synchronize, for which the host has waited. The passes are made inside `around`.
        """
        if rows == 0 and self._world.size == 1:
            return self._no_step(number, stop)
        if self._statistics is not None:
            self._statistics.keep()
        with around:
            sums, corrected = self._backward(batch, rows, stop, lap)
        if not self._checked:
            self._check_used()
        sums.wait()
        self._distributed.end_backward()
        if self._waits:
            lap("communication")
        exposed = self._distributed.exposed()
        scaled = self._scale.unscale(self._grads()) if self._scale is not None else None
        if scaled is not None and self._world.device.type != "cpu":
            lap("synchronize")  # it has waited for the device, which is no handing over
        overflowed = scaled is not None and scaled.overflowed
        some = (corrected or self._correct(sums)) and not overflowed
        guarded = self._statistics is not None
        outcome = Outcome(number, sums, exposed, guarded, self._reducer.take(), scaled)
        if self._statistics is not None:
            self._guarded(outcome, self._statistics, some)
        else:
            self._unguarded(outcome, some)
        self.forget()
        lap("optimizer")
        return outcome

    def forget(self) -> None:
        """Drop the gradients: those of the step that is done, or what a step that was broken off has left."""
        for param in self._params:  # what zero_grad does, without what it costs
            param.grad = None

    def _unguarded(self, outcome: Outcome, some: bool) -> None:
        norm = self._clipped() if self._clip is not None and not outcome.overflowed else None
        outcome.sums.fetch(norm)
        if some:
            if norm is not None and self._world.device.type == "cpu":
                outcome.totals(self._world)
            self._optimizer.step()

    def _guarded(self, outcome: Outcome, statistics: RunningStatistics, some: bool) -> None:
        """The norm says of all gradients whether they are finite, and the same on every rank: they are reduced."""
        norm = None
        if not outcome.overflowed:
            norm = self._norm() if self._clip is None else self._clipped()
        finite = outcome.sums.finite(norm)
        outcome.sums.fetch(norm)
        statistics.settle(finite)  # before the step, after which an average takes them in
        if some:
            step_if(self._optimizer, finite)

    def alone(self, batch: Batch, rows: int) -> list[Tensor]:
        """Loss and gradients of a batch's first micro-batch, on this rank alone; nothing of them is kept."""
        part_of, part_rows = micro_batches(batch, rows, self._micro)[0]
        loss = self._objective(self._distributed.model, part_of, part_rows).loss
        gradients = torch.autograd.grad(loss, self._params, allow_unused=True)
        return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]

    def _check_used(self) -> None:
        """After a first backward pass: a parameter without a gradient would not be reduced, and the next step fails."""
        named = self._distributed.model.named_parameters()
        unused = [name for name, param in named if param.requires_grad and param.grad is None]
        if self._pipelined is not None:  # ranks have different parameters, and must fail together
            unused = [name for share in self._world.gather(unused) for name in share]
        if unused:
            raise TrainingError(
                f"on several processes every parameter must take part in the loss: {', '.join(unused[:5])} got no "
                "gradient; use it, or freeze it with requires_grad_(False)"
            )
        self._checked = True

    def _no_step(self, number: int, stop: Callable[[], bool]) -> Outcome:
        sums = Tally(self._world, self._copies).launch(stop())
        sums.wait()
        sums.fetch(None)
        return Outcome(number, sums, NOTHING, guarded=self._statistics is not None)

    def _backward(self, batch: Batch, rows: int, stop: Callable[[], bool], lap: Lap) -> tuple[Sum, bool]:
        """Gradients reduced over the ranks, the sums on their way, and whether no correction can be needed."""
        if self._pipelined is not None:
            tally = Tally(self._world, self._copies)
            factor = 1.0 if self._scale is None else self._scale.factor
            weighted = self._pipelined.learn(batch, rows, lambda weight: weight / self._expected * factor, tally)
            lap("passes")
            return tally.launch(stop()), self._full and not weighted
        parts = self._parts(batch, rows)
        alone = self._world.size == 1 and len(parts) == 1
        tally = Tally(self._world, self._copies)
        weighted = False
        for number, (rows_of, part_rows) in enumerate(parts, start=1):
            last = number == len(parts)
            with self._distributed.reducing(last):
                judged = self._objective(self._distributed.module, rows_of, part_rows)
                weighted = weighted or judged.weighted
                tally.add(judged, part_rows)
                if last:
                    sums = tally.launch(stop())
                share = 1.0 if alone else self._share(judged.weight, part_rows)
                lap("forward")
                _scaled(judged.loss, share if self._scale is None else share * self._scale.factor).backward()
                lap("backward")
        return sums, alone or (self._full and not weighted)

    def _parts(self, batch: Batch, rows: int) -> list[tuple[Batch, int]]:
        """The micro-batches, with the number of samples of each.

        A rank that has fewer than the step needs takes one of an earlier batch, with 0, so that it takes part.
        """
        parts = micro_batches(batch, rows, self._micro) if rows else []
        if parts and not self._full and self._world.size > 1:
            self._spare = parts[0]
        missing = (self._passes or 1) - len(parts)
        if missing <= 0:
            return parts
        if self._spare is None:
            raise TrainingError(
                f"rank {self._world.rank} got no sample in its first batch: all were filtered or skipped; "
                "use a larger batch, or filter before streaming (ds.select)"
            )
        return parts + missing * [(self._spare[0], 0)]

    def _share(self, weight: float | Tensor, rows: int) -> float | Tensor:
        return weight / self._expected if rows else 0.0

    def _correct(self, sums: Sum) -> bool:
        """Turn the averaged gradients into those of the global mean. False: no rank had a sample, nothing to learn."""
        scale = self._data_size * self._expected
        grads = self._grads()
        total = sums.weight()
        if isinstance(total, Tensor):
            # Without a sample there is nothing to learn, though compression may have sent what it had left of before.
            torch._foreach_mul_(grads, torch.where(total > 0, scale / total, 0.0).float())
            return True
        if total and total != scale:
            torch._foreach_mul_(grads, scale / total)
        return total > 0

    def _grads(self) -> list[Tensor]:
        """This rank's parts."""
        return [part(p.grad) for p in self._params if p.grad is not None]

    def _clipped(self) -> Tensor:
        assert self._clip is not None
        grads = [p.grad for p in self._params if p.grad is not None]
        if self._pipelined is None and not any(isinstance(grad, DTensor) for grad in grads):
            return nn.utils.clip_grad_norm_(self._params, self._clip)
        norm = self._norm()
        torch._foreach_mul_([part(grad) for grad in grads], (self._clip / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _norm(self) -> Tensor:
        """Of all gradients together."""
        grads = [p.grad for p in self._params if p.grad is not None]
        if self._pipelined is None:
            return total_norm(grads)
        squared = squared_norms([part(grad) for grad in grads], grads).sum()
        self._pipelined.add_over_stages(squared)
        return squared.sqrt()


def _scaled(loss: Tensor, share: float | Tensor) -> Tensor:
    return loss if isinstance(share, float) and share == 1.0 else loss * share
