"""The guards in Lightning's Trainer: a callback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from headrace.adapters.guarded import Guarded, check_model
from headrace.adapters.monitor import Monitor
from headrace.adapters.recorded import Recorded
from headrace.errors import OptionError
from headrace.train.guards import Guards


class GuardsCallback(Callback):  # type: ignore[misc]
    """Watches over the steps of a fit with one optimizer.

    Lightning asks its optimizer for every step, also for one that is to be left out: that one has no gradients then, by
    which an optimizer of PyTorch's changes nothing, its weight decay and momentum included. The guards' state is in
    Lightning's checkpoints.
    """

    def __init__(self, guards: Guards, *, recorded: Recorded | Monitor | None = None) -> None:
        """`recorded`: the loader of the fit, or its Monitor, if the record is to have the findings."""
        self.guarded: Guarded | None = None
        """From the start of a fit on."""
        self._guards, self._recorded = guards, recorded
        self._saved: dict[str, Any] | None = None
        self._batch: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All is loaded and on its device. Raises OptionError for what cannot be guarded."""
        if len(trainer.optimizers) != 1:
            raise OptionError(f"guards are for a module with one optimizer: got {len(trainer.optimizers)}")
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            raise OptionError("gradients of a scaled loss say nothing of the model: use precision='bf16-mixed'")
        if self.guarded is not None:  # of a fit that was broken off
            self.guarded.close()
        check_model(trainer.strategy.model)  # which has what Lightning put around the module
        self.guarded = Guarded(pl_module, trainer.optimizers[0], self._guards, recorded=self._recorded)
        if self._saved is not None:
            self.guarded.load_state_dict(self._saved)
            self._saved = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Its keys may be asked for."""
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """The loss is divided for accumulation already."""
        assert self.guarded is not None
        self.guarded.add(loss, self._batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """After the backward pass, before clipping."""
        assert self.guarded is not None
        if self.guarded.is_told:  # not by a training_step that gave None, which leaves its step out
            self.guarded.allows()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was asked of the ranks last is read."""
        assert self.guarded is not None
        self._batch = None
        self.guarded.settle()
        self.guarded.close()

    def state_dict(self) -> dict[str, Any]:
        """The guards'."""
        return {} if self.guarded is None else self.guarded.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Lightning loads it before the optimizer's, so it is taken up when the fit starts."""
        self._saved = dict(state_dict) or None
