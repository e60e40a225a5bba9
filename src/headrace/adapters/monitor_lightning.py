"""The record of a run of Lightning's Trainer: a callback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from headrace.adapters.following import FollowedStep
from headrace.adapters.in_place import around, time_from_now_on, timed
from headrace.adapters.monitor import Monitor
from headrace.load.foreign import num_samples


class MonitorCallback(Callback):  # type: ignore[misc]
    """Writes the events of a fit: its steps, as Lightning counts them, evaluations and checkpoints.

    Waiting is the `next` of the loaders that Lightning fetches from. `loss` is what `training_step` gave, on rank 0; an
    evaluation has what the module logged in it, and as its loss `val_loss`. While a fit goes on, the loaders, the
    strategy's `batch_to_device` and the trainer's `save_checkpoint` are timed in place.
    """

    def __init__(self, run: Monitor | str | Path) -> None:
        """`run` is the run's folder, or a Monitor of it. Another fit appends to the run."""
        self.monitor = Monitor.of(run)
        """For `timed` and `write` in a step."""
        self._undo, self._step = ExitStack(), FollowedStep(self.monitor)
        self._done = 0
        self._evaluated: int | None = 0
        self._names: tuple[set[str], set[str]] = (set(), set())  # metrics of training, and of evaluation

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total, self._done = trainer.estimated_stepping_batches, trainer.global_step
        # Lightning counts the steps of each optimizer, and how often a module makes those of several is its own affair.
        is_known = math.isfinite(total) and len(trainer.optimizers) == 1
        total_steps = int(total) if is_known else None
        self.monitor.go_on(first_step=self._done, total_steps=total_steps)
        self.monitor.loads_from(trainer.fit_loop._combined_loader.flattened[0])
        parts = self.monitor.parts
        self._undo.enter_context(around(trainer.strategy, "batch_to_device", lambda *_, **__: parts.timed("copy")))
        self._undo.enter_context(around(trainer, "save_checkpoint", self._saving))
        for one in trainer.optimizers:
            self._undo.callback(one.register_step_post_hook(lambda *_: self._step.optimizer_done()).remove)
        self.on_train_epoch_start(trainer, pl_module)

    def _saving(self, filepath: str | Path, *_: Any, **__: Any) -> AbstractContextManager[None]:
        return self.monitor.saving(filepath)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The loaders may be new ones; those of the first epoch are iterated already."""
        self.monitor.epoch = trainer.current_epoch
        combined, waited = trainer.fit_loop._combined_loader, self.monitor.waited
        for loader in combined.flattened:
            time_from_now_on(loader, waited, self._undo)
        combined._iterator.iterators = [timed(one, waited) for one in combined._iterator.iterators]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.monitor.took(batch)
        self._step.begin()

    def on_before_backward(self, *_: Any) -> None:
        self._step.forward_done()

    def on_after_backward(self, *_: Any) -> None:
        self._step.backward_done()

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        self._step.optimizing(optimizer)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if loss is not None:  # divided by how many batches are accumulated already
            self._step.add_loss(loss)
        if trainer.global_step != self._done:
            self._done = trainer.global_step
            self.monitor.steps_done = self._done - 1  # Lightning counts each of several optimizers
            self._step.end()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._names[0].update(set(trainer.callback_metrics) - self._names[1])
            self._evaluated = 0
            self.monitor.parts.set_aside()

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, *_: Any) -> None:
        found = num_samples(batch) * self.monitor.world_size
        self._evaluated = self._evaluated + found if found and self._evaluated is not None else None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            sec = self.monitor.parts.go_on()
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k not in self._names[0]}
            self._names[1].update(found)
            self.monitor.write_evaluation(found.pop("val_loss", None), self._evaluated, sec, found)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._undo.close()
        self.monitor.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._undo.close()
        self._step.drop()
        self.monitor.abandon()
