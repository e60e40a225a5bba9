"""All that decides how training goes on, as named tensors and a little JSON.

Tensors: `model.NAME`, `optimizer.PARAMETER.KEY`, `ema.NAME` where weights are averaged, `random.GENERATOR`, in which
row r is rank r's, and what else is kept from step to step (`Kept`), under names of its own. JSON: what an optimizer
keeps as plain numbers. Names are the module's own, without a wrapper's prefix, and nothing says how many processes
there were, except the rows of `random`: other numbers of processes go on with generators seeded anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from headrace.errors import CheckpointError, StateError
from headrace.rank import resolve_rank
from headrace.train.average import Average, room_for_average
from headrace.train.frozen import Frozen
from headrace.train.parallel import Distributed
from headrace.train.randomness import random_state, seed_all, set_random_state
from headrace.train.world import World

_NUMBERS = (bool, int, float, type(None))


class Kept(Protocol):
    """What goes from step to step beside model and optimizer, such as gradients that were not sent yet."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it; a name that several ranks have is of the same on each."""

    def room(self, entries: Mapping[str, Any]) -> dict[str, Tensor]:
        """Where it wants what it can use of a checkpoint with these entries."""

    def adopt(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what was read, its own among it; from nothing where there is none of its own."""


@dataclass(frozen=True, slots=True)
class Learner:
    """A model, as it lies on the processes, its optimizer, the world they learn in, and what else they keep."""

    distributed: Distributed
    optimizer: Optimizer
    world: World
    shapes: Mapping[str, tuple[int, ...]]
    """Of all tensors of the model, also those that other processes have, by name."""

    others: tuple[Kept, ...] = ()
    average: Average | None = None
    sharing: tuple[int, int] = (1, 1)
    """How many processes compute each layer, and each sample, together: the mesh's tp and pp."""
    frozen: Frozen | None = None
    """The frozen parameters of the whole model, where they are not saved."""

    @property
    def model(self) -> nn.Module:
        """What this process has of the model."""
        return self.distributed.model

    @property
    def optimizer_name(self) -> str:
        """What kind of optimizer it is."""
        return type(self.optimizer).__name__

    def tensors(self) -> dict[str, Tensor]:
        """Everything, as tensors; those of the model and optimizer are the live ones. Collective."""
        self.distributed.share(self.model.buffers())
        found = self._model_tensors()
        for name, key, value in self._optimizer_tensors():
            found[f"optimizer.{name}.{key}"] = value
        if self.average is not None:
            self.distributed.share(self.average.statistics())
            found |= self.average.tensors()
        states = self.world.gather(random_state(self.world.device))
        for name in states[0]:
            found[f"random.{name}"] = torch.stack([state[name] for state in states])
        for other in self.others:
            found |= other.tensors()
        return found

    def numbers(self) -> dict[str, dict[str, Any]]:
        """What the optimizer keeps as plain numbers: parameter -> key -> value. Collective."""
        found: dict[str, dict[str, Any]] = {}
        for name, key, value in self._optimizer_values():
            if isinstance(value, Tensor):
                continue
            if not isinstance(value, _NUMBERS):
                raise CheckpointError(
                    f"an optimizer's state must be tensors and numbers to be saved: {type(self.optimizer).__name__} "
                    f"keeps a {type(value).__name__} as {key!r}"
                )
            found.setdefault(name, {})[key] = value
        if self.shapes.keys() <= self.model.state_dict().keys():
            return found
        return {name: kept for share in self.world.gather(found) for name, kept in share.items()}

    def room(self, metadata: Metadata) -> dict[str, Tensor]:
        """Where a checkpoint with this table of contents is to be read to: the live model, new tensors for the rest.

        Raises StateError, naming what differs, when it is a checkpoint of another model or optimizer.
        """
        entries = metadata.state_dict_metadata
        found = self._model_tensors()
        _check_same({name: shape for name, shape in self.shapes.items() if name not in self._left_out}, entries)
        elsewhere = {name for name in self.shapes if f"model.{name}" not in found}  # on other stages, say
        found |= room_for_average(self.average, entries, elsewhere)
        known = {f"optimizer.{name}." for name in self._params()}
        for name, entry in entries.items():
            if name.startswith(("optimizer.", "random.")):
                assert isinstance(entry, TensorStorageMetadata)
                if name.startswith("optimizer.") and not any(name.startswith(prefix) for prefix in known):
                    if any(name.startswith(f"optimizer.{key}.") for key in elsewhere):
                        continue
                    raise StateError(f"the checkpoint has {name!r}, but this model does not train that parameter")
                found[name] = self._room_for(name, entry)
        for other in self.others:
            found |= other.room(entries)
        return found

    def _room_for(self, name: str, entry: TensorStorageMetadata) -> Tensor:
        """What an optimizer keeps of a sharded parameter, a value for each of its own, is sharded in the same way."""
        for param_name, param in self._params().items():
            if name.startswith(f"optimizer.{param_name}.") and isinstance(param, DTensor) and entry.size == param.shape:
                return torch.empty_like(param, dtype=entry.properties.dtype, requires_grad=False)
        return torch.empty(entry.size, dtype=entry.properties.dtype)

    def adopt(
        self,
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Mapping[str, Any]],
        seed: int,
        sharing: tuple[int, int] = (1, 1),
    ) -> None:
        """Go on from what was read into `room`; the model has it already. `sharing`: of the run that saved it."""
        params = self._params()
        state: dict[int, dict[str, Any]] = {}
        for index, name in enumerate(params):
            prefix = f"optimizer.{name}."
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            own |= numbers.get(name, {})
            if own:
                state[index] = own
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for other in self.others:
            other.adopt(tensors)
        if self.average is not None:
            self.average.adopt(tensors)
        self._set_random(tensors, seed, sharing)

    def _set_random(self, tensors: Mapping[str, Tensor], seed: int, sharing: tuple[int, int]) -> None:
        """Those that share samples must draw alike: generators of ranks that shared others are of no use."""
        rows = {n.removeprefix("random."): value for n, value in tensors.items() if n.startswith("random.")}
        if rows and len(rows["torch"]) == self.world.size and sharing == self.sharing:
            # Copies: torch's generator crashes on a view that does not begin where its storage does.
            own = {name: value[self.world.rank].clone() for name, value in rows.items()}
            set_random_state(own, self.world.device)
        else:
            seed_all(seed, resolve_rank().rank)

    def _model_tensors(self) -> dict[str, Tensor]:
        return {f"model.{name}": value for name, value in _tensors_of(self.model) if name not in self._left_out}

    @property
    def _left_out(self) -> frozenset[str]:
        return frozenset() if self.frozen is None else self.frozen.names

    def _params(self) -> dict[str, nn.Parameter]:
        """The optimizer's parameters by the model's names for them, in the optimizer's order."""
        names = {id(param): name for name, param in self.model.named_parameters()}
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        return {names[id(param)]: param for param in params}

    def _optimizer_values(self) -> Iterator[tuple[str, str, Any]]:
        for name, param in self._params().items():
            for key, value in self.optimizer.state.get(param, {}).items():
                yield name, str(key), value

    def _optimizer_tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Those of the optimizer's values that are tensors, as they are saved. Collective where they are cut so."""
        return ((name, key, value) for name, key, value in self._optimizer_values() if isinstance(value, Tensor))


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The model's state by name; of tied weights, which are one tensor of several names, the first name only."""
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"a model's state must be tensors to be saved: {name!r} is a {type(value).__name__} "
                "(get_extra_state, say); register it as a buffer"
            )
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value.detach()


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of a model's tensors, by name. Raises CheckpointError for state that is no tensor."""
    return {name: tuple(value.shape) for name, value in _tensors_of(model)}


def _check_same(own: Mapping[str, tuple[int, ...]], entries: Mapping[str, Any]) -> None:
    saved = {name: tuple(entry.size) for name, entry in entries.items() if name.startswith("model.")}
    mine = {f"model.{name}": shape for name, shape in own.items()}
    if saved == mine:
        return
    name = min(name for name in saved.keys() | mine.keys() if saved.get(name) != mine.get(name))
    shown = name.removeprefix("model.")
    raise StateError(
        f"the checkpoint is of another model: {shown!r} is {saved.get(name, 'missing')} in it and "
        f"{mine.get(name, 'missing')} here; "
        "resume with the settings it was trained with, or start anew in another run folder"
    )
