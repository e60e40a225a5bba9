"""Hugging Face's Trainer on a loader's batches: exact through its checkpoints, each rank reading its own share only."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from headrace.adapters.recorded import Recorded
from headrace.errors import OptionError, StateError
from headrace.load import Loader

Inputs = Callable[[dict[str, Any]], Mapping[str, Any]]

NAME = "HeadraceLoader"
"""Under this name a checkpoint's `trainer_state.json` has the loader's state, among the callbacks' states."""

_MOST_GIVEN = 1024
"""The trainer takes all batches of a step before it begins with the first."""


def feed(trainer: Trainer, loader: Loader | Recorded, *, inputs: Inputs | None = None) -> None:
    """Have a trainer train on a loader's batches, and its checkpoints hold the loader's state.

    `trainer.train(resume_from_checkpoint=...)` then goes on with the very next batch, and reads nothing of those
    before it. Call it once, before `train`; the trainer needs no `train_dataset`. The loader is not handed to
    accelerate, which would share its batches out a second time.

    Args:
        trainer: a `transformers.Trainer`. Its per_device_train_batch_size does not matter: batches are the loader's.
        loader: gives this rank's batches; one iteration of it is an epoch of the trainer's. An endless one needs
            max_steps.
        inputs: function(batch) -> what the model gets by name; None: the batch's fields, without `__key__` and other
            names that begin so.

    Raises OptionError for other arguments; `train` raises StateError for a checkpoint without the loader's state, or
    with that of another dataset or order.
    """
    if not isinstance(trainer, Trainer) or not isinstance(loader, Loader | Recorded):
        shown = f"{type(trainer).__name__} and {type(loader).__name__}"
        raise OptionError(f"feed is for a transformers.Trainer and a headrace.Loader: got {shown}")
    batches = _Batches(loader, inputs or _fields)
    # A loader in a DataLoader's clothes: the trainer asks for its length, its dataset and its batch size.
    dressed = DataLoader(batches, batch_size=None, collate_fn=_as_it_is)
    trainer.get_train_dataloader = lambda: dressed
    trainer.add_callback(_callback(loader, batches))


class _Batches(IterableDataset[Mapping[str, Any]]):
    """The loader's batches; after a resume with stand-ins before them, for those that the trainer passes over."""

    def __init__(self, loader: Loader | Recorded, inputs: Inputs) -> None:
        self._loader, self._inputs = loader, inputs
        self.num_stand_ins = 0
        self._given: deque[tuple[int, Any]] = deque(maxlen=_MOST_GIVEN)

    @property
    def fed_by(self) -> Loader:
        """Whose batches these are."""
        return self._loader.loader if isinstance(self._loader, Recorded) else self._loader

    def __len__(self) -> int:
        return len(self._loader)  # TypeError for an endless one, which tells the trainer

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        num_stand_ins, self.num_stand_ins = self.num_stand_ins, 0
        for _ in range(num_stand_ins):
            yield {}
        for batch in self._loader:
            inputs = self._inputs(batch)
            self._given.append((id(inputs), batch.get("__key__")))
            yield inputs

    def keys_of(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of samples that the trainer has as these inputs, as a batch names them; {} where they are not known.

        An id may have come before, of inputs that are gone: the latest is that of those which are there.
        """
        keys = next((keys for given, keys in reversed(self._given) if given == id(inputs)), None)
        return {} if keys is None else {"__key__": keys}


def _callback(loader: Loader | Recorded, batches: _Batches) -> TrainerCallback:
    """The callback that saves and loads. Its class is made here, since the trainer may make it anew, by its class."""

    class LoaderState(TrainerCallback, ExportableState):  # type: ignore[misc]
        """Keeps a loader's state in the trainer's checkpoints."""

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": {"saved": loader.state_dict()}}

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step:  # it goes on from a checkpoint
                loader.load_state_dict(_saved(state, type(self).__name__))
                if not args.ignore_data_skip:
                    batches.num_stand_ins = _num_passed(args, state, loader)

    LoaderState.__name__ = NAME
    return LoaderState()


def _saved(state: Any, name: str) -> Mapping[str, Any]:
    try:
        return state.stateful_callbacks[name]["attributes"]["saved"]  # type: ignore[no-any-return]
    except (KeyError, TypeError):
        raise StateError(
            f"the checkpoint of step {state.global_step} has no state of a headrace.Loader, since it was saved without "
            "`feed`: go on from one that has, or start without resume_from_checkpoint"
        ) from None


def _num_passed(args: Any, state: Any, loader: Loader | Recorded) -> int:
    """How many batches the trainer will pass over: those of its epoch that were trained on."""
    each = args.gradient_accumulation_steps
    try:
        steps_per_epoch = max(1, -(-len(loader) // each))
    except TypeError:
        steps_per_epoch = state.max_steps
    return state.global_step % steps_per_epoch * each  # type: ignore[no-any-return]


def _fields(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if not name.startswith("__")}


def _as_it_is(batch: Any) -> Any:
    return batch
