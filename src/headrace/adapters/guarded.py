"""The guards in a loop that is not the Trainer's: one's own, Fabric's, Accelerate's.

The loop says each loss before its backward pass, and asks before the optimizer's step whether it may be made. What
follows a step (a copy of the state, a comparison of the ranks, going back) follows the optimizer by its own hooks, so
that a loop has nothing to call for it. All ranks decide alike: on the losses' mean, which is on its way over the ranks
during the backward pass, and on the norm of gradients that are reduced already.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer

from headrace.adapters.monitor import Monitor
from headrace.adapters.recorded import Recorded
from headrace.errors import OptionError, TrainingError
from headrace.rank import resolve_rank
from headrace.train.batches import Batch
from headrace.train.dtensors import total_norm
from headrace.train.guards import Finding, Guards, RunningStatistics, Watch
from headrace.train.objective import Judgement
from headrace.train.parallel import Staged
from headrace.train.tally import Sum, Tally, Totals
from headrace.train.world import World


@dataclass(frozen=True, slots=True)
class _Learning:
    """All that goes from step to step in somebody else's loop, as far as it is known."""

    model: nn.Module
    optimizer: Optimizer
    world: World
    others: tuple[()] = ()
    average: None = None


class Guarded:
    """Watches over the steps of one optimizer."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, guards: Guards, *, recorded: Recorded | Monitor | None = None
    ) -> None:
        """Begin, once the processes have met, and what a checkpoint holds is loaded. Collective.

        `model` and `optimizer` may be those that a library wrapped; `recorded` gets the findings as events of its run.
        Raises OptionError for what cannot be guarded here: replays, scaled losses, FSDP's first version.
        """
        _check(model, optimizer, guards, recorded)
        self.step = 0
        """Steps judged, those that were left out included."""
        self.findings: list[Finding] = []
        """What was found since the beginning, the same on all ranks."""
        self._recorded = recorded
        self._optimizer = unwrapped(optimizer)
        self._world = _world(model)
        self._watch = Watch(guards, _Learning(model, self._optimizer, self._world), self._note, self._tell)
        self._statistics = RunningStatistics(model)
        self._sums: list[tuple[Sum, Batch]] = []
        self._rates: list[Any] = []
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]
        self._begin(None)

    def add(self, loss: Tensor, batch: Mapping[str, Any] | None = None) -> None:
        """Say the loss that a backward pass is about to begin from, of no dimension, and its batch. Collective.

        What is added for one step adds up to its loss: with accumulation divide as for the gradients. `batch` is asked
        for keys of its samples (`__key__`) if the loss is not finite; None: only ranks are named then.
        """
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shown = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise TrainingError(f"a loss must be a tensor of one number: got {shown}; take its mean")
        if self._due:  # the optimizer was not asked: a library may leave a step out by itself
            self._act()
        if not self._sums:
            self._watch.timed(time.perf_counter() - self._began)
        tally = Tally(self._world)
        tally.add(Judgement(loss.detach(), 1.0, False, {}, None), 1)  # ranks count alike, as in the gradients' mean
        self._sums.append((tally.launch(stop=False), dict(batch) if isinstance(batch, Mapping) else {}))

    @property
    def is_told(self) -> bool:
        """Whether a loss was added for the step to come."""
        return bool(self._sums)

    def allows(self) -> bool:
        """Whether the optimizer's step may be made, after the backward pass and before clipping. Collective.

        False: loss or gradients are not finite. The gradients are gone then, so that an optimizer that is asked all
        the same changes nothing. On a GPU it waits for the device. Raises TrainingError where the run must end, and
        where no loss was added or no gradient is there.
        """
        totals = self._totals()
        own_loss, batch = self._worst()
        self._sums.clear()
        self.step += 1
        self._statistics.settle(totals.finite)
        if not totals.finite:
            for param in self._params():
                param.grad = None
        self._watch.read(self.step, totals, own_loss, batch, overflowed=False)
        self._due = True
        if not totals.finite:
            self._act()
        return totals.finite

    def settle(self) -> bool:
        """Compare the ranks at once, before a checkpoint or at the end; whether the state may be saved. Collective.

        False: the latest steps were spikes, so that it may be one to go back from.
        """
        if self._due:
            self._act()
        self._watch.settle(self.step)
        self._statistics.keep()
        return not self._watch.in_doubt

    def close(self) -> None:
        """Let go of the optimizer: its steps are no longer watched."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """A JSON value, the same on every rank."""
        return {"step": self.step, "guards": self._watch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved one, once model and optimizer are loaded: a copy of them is made."""
        self.step = int(state["step"])
        self._begin(state["guards"])

    def _begin(self, state: dict[str, Any] | None) -> None:
        self._watch.begin(self.step, state)
        self._go_on()

    def _act(self) -> None:
        """After a step: go back, copy or compare if that is due."""
        self._watch.act(self.step)
        self._go_on()

    def _go_on(self) -> None:
        self._due = False
        self._factor = self._watch.factor
        self._statistics.keep()
        self._began = time.perf_counter()

    def _totals(self) -> Totals:
        grads = [param.grad for param in self._params() if param.grad is not None]
        if not grads or not self._sums:
            missing = "no parameter of the optimizer has a gradient" if self._sums else "no loss was added"
            raise TrainingError(
                f"a step is judged by its loss and gradients: {missing}; call add(loss, batch) before the backward "
                "pass and allows() after it, before gradients are cleared"
            )
        norm = math.hypot(*(total_norm(some).item() for some in _by_device(grads)))
        for one, _ in self._sums:
            one.wait()
            one.fetch(None)
        return Totals(len(self._sums), 1.0, False, sum(one.totals().loss or 0.0 for one, _ in self._sums), {}, norm)

    def _worst(self) -> tuple[float, Batch]:
        """This rank's first loss that is not finite and its batch; its first where all are."""
        losses = [(one.own_loss(), batch) for one, batch in self._sums]
        return next((found for found in losses if not math.isfinite(found[0])), losses[0])

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        """The back-off lasts for the step only: between steps rates are the scheduler's."""
        self._rates = [group["lr"] for group in optimizer.param_groups] if self._factor < 1.0 else []
        for group, rate in zip(optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate * self._factor

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate
        if self._due:
            self._act()

    def _params(self) -> list[nn.Parameter]:
        return [param for group in self._optimizer.param_groups for param in group["params"]]

    def _note(self, finding: Finding) -> None:
        self.findings.append(finding)
        if self._recorded is not None and not self._recorded.is_closed:
            counted = {"guarded_step": finding.step, "step": self._recorded.steps_done + 1}
            self._recorded.write("guard", **{**finding.event(), **counted})

    def _tell(self, step: int, p50_sec: list[float], p90_sec: list[float]) -> None:
        # The loop's library decides whose end comes first, that of the record or that of the guards.
        if self._recorded is not None and not self._recorded.is_closed:
            counted = {"guarded_step": step, "step": self._recorded.steps_done + 1}
            self._recorded.write("ranks", **counted, p50_sec=p50_sec, p90_sec=p90_sec)


def _by_device(grads: list[Tensor]) -> Iterator[list[Tensor]]:
    """Layers may have been placed on several."""
    for device in dict.fromkeys(grad.device for grad in grads):
        yield [grad for grad in grads if grad.device == device]


def unwrapped(optimizer: Any) -> Any:
    """The optimizer itself, without what Fabric, Lightning or Accelerate put around it."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _check(model: nn.Module, optimizer: Any, guards: Guards, recorded: Recorded | Monitor | None) -> None:
    if not isinstance(guards, Guards):
        raise OptionError(f"guards must be headrace.Guards: got a {type(guards).__name__}")
    if recorded is not None and not isinstance(recorded, Recorded | Monitor):
        raise OptionError(f"recorded must be the loop's Recorded or Monitor, or None: got a {type(recorded).__name__}")
    if guards.replay_every is not None:
        raise OptionError("a replay needs the Trainer, which can compute a step twice: leave replay_every away")
    if _scaler(optimizer) is not None:
        raise OptionError(
            "gradients of a scaled loss say nothing of the model: train in bf16 or fp32 to guard a loop that is not "
            "the Trainer's"
        )
    check_model(model)
    _check_optimizer(unwrapped(optimizer))


def check_model(model: nn.Module) -> None:
    """Raise OptionError for one whose gradients no rank has together."""
    if isinstance(model, Staged):
        raise OptionError(
            "stages of a pipeline have a part of the gradients each: take a mesh without pp, or the Trainer"
        )
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise OptionError("a FullyShardedDataParallel has gradients that cannot be told apart: use fully_shard (FSDP2)")


def _check_optimizer(optimizer: Any) -> None:
    kinds = [type(one).__module__ for one in (optimizer, getattr(optimizer, "optimizer", None))]
    if not isinstance(optimizer, Optimizer) or any(kind.startswith("deepspeed") for kind in kinds):
        raise OptionError(
            f"guards follow a torch.optim.Optimizer: got a {type(optimizer).__name__}; DeepSpeed has its own gradients"
        )
    if any(group["lr"] is None for group in optimizer.param_groups):
        raise OptionError(
            "guards lower learning rates after bad steps: this optimizer has none (lr is None); give it one"
        )


def _scaler(optimizer: Any) -> Any:
    """Of the loss, as Accelerate's optimizer has it and Fabric's can tell; None: there is none, or nobody knows."""
    precision = getattr(getattr(optimizer, "_strategy", None), "precision", None)
    return getattr(optimizer, "scaler", None) or getattr(precision, "scaler", None)


def _world(model: nn.Module) -> World:
    device = next(model.parameters()).device
    if dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), device)
    if (size := resolve_rank().world_size) > 1:
        raise OptionError(
            f"{size} processes must have met before their steps are guarded: torch.distributed is not initialised; "
            "make Guarded after init_process_group, or after the library has set the model up"
        )
    return World(0, 1, device)
