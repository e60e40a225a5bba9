"""The record of a run of Hugging Face's Trainer: a callback."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from headrace.adapters.following import FollowedStep
from headrace.adapters.in_place import around, replaced, time_from_now_on, timed
from headrace.adapters.monitor import Monitor
from headrace.errors import OptionError
from headrace.load.foreign import raw_loader

_NO_METRICS = ("epoch", "runtime", "_per_second", "_preparation_time")


class MonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the events of a trainer's runs: its steps, evaluations and checkpoints.

    A callback sees neither the `next` of the trainer's loader nor its losses, so while `train` runs some of its methods
    are timed in place. A step is all batches that are accumulated; `loss` is what the trainer adds up, on rank 0.
    """

    def __init__(self, trainer: Trainer, run: Monitor | str | Path) -> None:
        """`trainer` is the one that gets the callback, `run` the run's folder, or a Monitor of it. Training again
        appends to the run. Raises OptionError for what is no trainer."""
        if not isinstance(trainer, Trainer):
            raise OptionError(f"MonitorCallback is for a transformers.Trainer: got a {type(trainer).__name__}")
        self.monitor = Monitor.of(run)
        """For `timed` and `write` in a step."""
        self._trainer, self._undo, self._step = trainer, ExitStack(), FollowedStep(self.monitor)
        self._found: dict[str, float] | None = None  # in the evaluation under way
        self._evaluated: int | None = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        self._undo.close()  # of training that was broken off
        self._step.drop()
        self.monitor.go_on(first_step=state.global_step, total_steps=state.max_steps)
        self.monitor.loads_from(getattr(train_dataloader.dataset, "fed_by", None) or raw_loader(train_dataloader))
        trainer, undo = self._trainer, self._undo.enter_context
        undo(replaced(trainer, "get_batch_samples", self._get))
        undo(replaced(trainer, "training_step", self._train))
        undo(around(trainer.accelerator, "backward", self._step.backward))
        undo(around(trainer, "_evaluate", self._evaluating))
        undo(around(trainer, "_save_checkpoint", self._saving))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Counted, since the state's is a share of `max_steps` where a dataset has no length.
        self.monitor.epoch = int(state.epoch or 0) if self.monitor.epoch is None else self.monitor.epoch + 1

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self._step.optimizing(optimizer)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step.optimizer_done()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._step.end()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, eval_dataloader: Any, **_: Any) -> None:
        if self._found is not None:
            self._found |= {name: value for name, value in metrics.items() if not name.endswith(_NO_METRICS)}
            self._evaluated = _sum(self._evaluated, self._num_examples(eval_dataloader))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._undo.close()
        self.monitor.close()

    def _num_examples(self, loader: Any) -> int | None:
        try:
            return int(self._trainer.num_examples(loader))
        except TypeError:  # an iterable dataset has no length
            return None

    def _get(self, get: Callable[..., Any], batches: Iterator[Any], *rest: Any, **named: Any) -> Any:
        """The trainer asks for a step's batches; at an epoch's first, accelerate's loader has not begun its own."""
        wrapper = inspect.getgeneratorlocals(batches).get("self") if inspect.isgenerator(batches) else None
        if wrapper is None:  # an iterator of the loader's own
            batches = timed(batches, self.monitor.waited)
        else:
            time_from_now_on(raw_loader(wrapper), self.monitor.waited, self._undo)
        with self.monitor.parts.timed("copy"):
            return get(batches, *rest, **named)

    def _train(self, train: Callable[..., Any], model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        self.monitor.took(inputs)
        self._step.begin()
        loss = train(model, inputs, *rest, **named)
        self._step.add_loss(loss)
        return loss

    @contextmanager
    def _evaluating(self, *_: Any, **__: Any) -> Iterator[None]:
        self._found, self._evaluated = {}, 0
        self.monitor.parts.set_aside()
        yield
        sec, found, self._found = self.monitor.parts.go_on(), self._found, None
        self.monitor.write_evaluation(found.pop("eval_loss", None), self._evaluated, sec, found)

    @contextmanager
    def _saving(self, *_: Any, **__: Any) -> Iterator[None]:
        folder = Path(self._trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self._trainer.state.global_step}")
        with self.monitor.saving(folder):
            yield


def _sum(count: int | None, more: int | None) -> int | None:
    return None if count is None or more is None else count + more
