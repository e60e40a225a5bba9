"""The guards in Hugging Face's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from headrace.adapters.guarded import Guarded
from headrace.adapters.monitor import Monitor
from headrace.adapters.recorded import Recorded
from headrace.errors import OptionError
from headrace.train.guards import Guards

NAME = "HeadraceGuards"
"""Under this name a checkpoint's `trainer_state.json` has the guards' state, among the callbacks' states."""


def guard(trainer: Trainer, guards: Guards, *, recorded: Recorded | Monitor | None = None) -> GuardedTraining:
    """Have a trainer's steps watched. Call it once, before `train`; what it returns has the findings.

    The trainer's callbacks see a step's gradients only once they are clipped, and never its loss. So what it does with
    one batch is followed: the loss as it goes backward, and the gradients as soon as they are reduced. The trainer asks
    its optimizer for every step, also for one that is to be left out: that one has no gradients then, by which an
    optimizer of PyTorch's changes nothing, its weight decay and momentum included. The guards' state is in the
    trainer's checkpoints.

    Raises OptionError for other arguments; `train` raises it for a loss that is scaled (fp16).
    """
    if not isinstance(trainer, Trainer):
        raise OptionError(f"guard is for a transformers.Trainer: got a {type(trainer).__name__}")
    watched = GuardedTraining(trainer, guards, recorded)
    trainer.training_step = watched.training_step
    trainer.add_callback(_callback(watched))
    return watched


class GuardedTraining:
    """What the trainer does with a batch, and what the guards are to know of it."""

    def __init__(self, trainer: Trainer, guards: Guards, recorded: Recorded | Monitor | None) -> None:
        self.guarded: Guarded | None = None
        """From the start of `train` on."""
        self._trainer, self._guards, self._recorded = trainer, guards, recorded
        self._training_step: Callable[..., Tensor] = trainer.training_step
        self._batch: Mapping[str, Any] = {}
        self._keys_of: Callable[[Any], Mapping[str, Any]] | None = None

    def begin(self, loader: Any, saved: dict[str, Any] | None) -> None:
        """All is prepared and loaded."""
        trainer = self._trainer
        if self.guarded is not None:  # of training that was broken off
            self.guarded.close()
        self.guarded = Guarded(trainer.model, trainer.optimizer, self._guards, recorded=self._recorded)
        if saved is not None:
            self.guarded.load_state_dict(saved)
        self._keys_of = getattr(getattr(loader, "dataset", None), "keys_of", None)

    def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Tensor:
        """The trainer's, with its loss and its gradients seen."""
        accelerator, guarded = self._trainer.accelerator, self.guarded
        assert guarded is not None
        keys = {} if self._keys_of is None else self._keys_of(inputs)
        backward = accelerator.backward

        def seen(loss: Tensor, **options: Any) -> None:
            guarded.add(loss, {**inputs, **keys})
            backward(loss, **options)

        accelerator.backward = seen
        try:
            loss = self._training_step(model, inputs, *rest, **named)
        finally:
            accelerator.backward = backward
        if accelerator.sync_gradients:
            guarded.allows()
        return loss


def _callback(watched: GuardedTraining) -> TrainerCallback:
    """The callback that begins, saves and ends. Its class is made here, since the trainer may make it anew."""

    class GuardsState(TrainerCallback, ExportableState):  # type: ignore[misc]
        """Keeps the guards' state in the trainer's checkpoints."""

        def state(self) -> dict[str, Any]:
            saved = None if watched.guarded is None else watched.guarded.state_dict()
            return {"args": {}, "attributes": {"saved": saved}}

        def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
            states = state.stateful_callbacks if state.global_step else {}
            watched.begin(train_dataloader, states.get(NAME, {}).get("attributes", {}).get("saved"))

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            assert watched.guarded is not None
            watched.guarded.settle()
            watched.guarded.close()

    GuardsState.__name__ = NAME
    return GuardsState()
