"""The layers of a model over the devices of one machine, in one process: for a model that does not fit on one.

Layers go to the devices in their order, so that activations change the device as seldom as can be; what a layer is
called with is moved to where it lies. One device computes at a time: memory is won by this, and no time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from headrace.errors import OptionError
from headrace.storage.size import parse_size
from headrace.train.parallel.auto import SHARE_OF_STATES, process_memory_bytes, shown_bytes
from headrace.train.parallel.blocks import repeated_blocks

logger = logging.getLogger("headrace.train")

_PLACED = "_headrace_placed"
"""An attribute of modules whose layers were placed; copies and parts of them have it, too."""


@dataclass(slots=True)
class Layer:
    """What goes to one device: a block, a module that is not taken apart, or several that share a parameter."""

    names: list[str] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    owners: list[nn.Module] = field(default_factory=list)
    """Modules that were taken apart, of which only the tensors of their own belong to this layer."""

    def tensors(self) -> Iterator[Tensor]:
        """Parameters and buffers, each once."""
        found = [tensor for module in self.modules for tensor in (*module.parameters(), *module.buffers())]
        found += [tensor for module in self.owners for tensor in _own(module)]
        return iter({id(tensor): tensor for tensor in found}.values())

    def num_bytes(self, optimizer_bytes: float) -> int:
        """With gradients, and the optimizer's state, which takes so many bytes for each trained value."""
        return sum(
            tensor.numel() * tensor.element_size()
            + (round(tensor.numel() * (tensor.element_size() + optimizer_bytes)) if tensor.requires_grad else 0)
            for tensor in self.tensors()
        )


def layers_of(model: nn.Module) -> list[Layer]:
    """The model's layers, in its order. What share a parameter are one, where the first of them lies.

    Not taken apart are blocks, and modules that have tensors of their own beside children, since they may use those
    without calling them; but for the model itself, and what has blocks inside. The own tensors of these go with the
    first layer.
    """
    blocks = {id(block) for block in repeated_blocks(model)}
    owners: list[nn.Module] = []
    layers: list[Layer] = []
    for name, module in _taken_apart(model, blocks, owners):
        layers.append(Layer([name], [module]))
    own = [owner for owner in owners if any(True for _ in _own(owner))]
    if own:
        layers = layers or [Layer()]
        layers[0].owners.extend(own)
    return _merged(layers)


def _taken_apart(model: nn.Module, blocks: set[int], owners: list[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Modules with tensors that are placed as one; those that are not are added to `owners`. Each once."""
    seen: set[int] = set()

    def look(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        children = list(module.named_children())
        holds_blocks = any(id(inner) in blocks for inner in module.modules() if inner is not module)
        apart = module is model or holds_blocks or not any(True for _ in _own(module))
        if id(module) in blocks or not children or not apart:
            if any(True for _ in (*module.parameters(), *module.buffers())):
                yield name or "the model", module
            return
        owners.append(module)
        for child_name, child in children:
            yield from look(child, f"{name}.{child_name}" if name else child_name)

    return look(model, "")


def _own(module: nn.Module) -> Iterator[Tensor]:
    return iter((*module.parameters(recurse=False), *module.buffers(recurse=False)))


def _merged(layers: Iterable[Layer]) -> list[Layer]:
    """With layers that share parameters made one. Shared buffers are none of that: each device has its copy."""
    merged: list[Layer] = []
    home: dict[int, Layer] = {}
    for layer in layers:
        params = [id(tensor) for tensor in layer.tensors() if isinstance(tensor, nn.Parameter)]
        others = list({id(home[param]): home[param] for param in params if param in home}.values())
        first, *rest = sorted([*others, layer], key=lambda one: _place_of(one, merged))
        for other in rest:
            first.names += other.names
            first.modules += other.modules
            first.owners += other.owners
        merged = [one for one in merged if not any(one is other for other in rest)]
        if first is layer:
            merged.append(layer)
        home.update((id(tensor), first) for tensor in first.tensors())
    return merged


def _place_of(layer: Layer, merged: list[Layer]) -> int:
    return next((place for place, one in enumerate(merged) if one is layer), len(merged))


def plan_places(sizes: Sequence[int], rooms: Sequence[int]) -> list[int] | None:
    """For each layer the number of its device, never falling, so that the fullest is as little filled as can be.

    `sizes` and `rooms` are in bytes; a device is filled by its layers' share of its room. None: they do not fit.
    """
    if _filled(sizes, rooms) is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _filled(sizes, [int(room * middle) for room in rooms]) is None:
            low = middle
        else:
            high = middle
    return _filled(sizes, [int(room * high) for room in rooms])


_HALVINGS = 40


def _filled(sizes: Sequence[int], rooms: Sequence[int]) -> list[int] | None:
    """Each device filled before the next is begun: if that does not do, nothing in this order does."""
    places, device, left = [], 0, rooms[0]
    for size in sizes:
        while size > left:
            device += 1
            if device == len(rooms):
                return None
            left = rooms[device]
        left -= size
        places.append(device)
    return places


def place_layers(
    model: nn.Module,
    devices: Sequence[str | torch.device] | None = None,
    *,
    memory: Sequence[int | str] | None = None,
    optimizer_bytes: float = 8.0,
) -> nn.Module:
    """Spread a model's layers over the devices of this machine; returns the model, to be called as before.

    For a training loop of your own, in one process: the backward pass and the optimizer, which is made afterwards, are
    the ordinary ones. The model is called with inputs on any device, and its outputs are on that of its first layer.

    - `devices`: in the order of the layers; None: all GPUs.
    - `memory`: what parameters, gradients and optimizer may take of each, in bytes, or as "20GiB"; None: 60 % of what
      is free, the rest being left to activations.
    - `optimizer_bytes`: the optimizer's state for each trained value; 8 is AdamW's.

    Raises OptionError, with the sizes, for a model that does not fit, and for one that is placed already or has no
    values; the model is as it was then.

    >>> place_layers(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), ["cpu", "cpu"])(torch.ones(4, 2)).shape
    torch.Size([4, 1])
    """
    check_unplaced(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise OptionError(f"a layer must have its values before it is placed: {name} lies on device meta")
    chosen = _devices(devices)
    rooms = _rooms(chosen, memory)
    layers = layers_of(model)
    places = _planned(layers, chosen, rooms, optimizer_bytes)
    for layer, place in zip(layers, places, strict=True):
        _put(layer, chosen[place])
    home = chosen[places[0]] if places else chosen[0]
    model.register_forward_pre_hook(_inputs_to(home), with_kwargs=True)
    model.register_forward_hook(partial(_output_to, home))
    for module in model.modules():
        setattr(module, _PLACED, True)
    return model


def check_unplaced(model: nn.Module) -> None:
    """Raise OptionError for a model whose layers `place_layers` has spread."""
    if any(hasattr(module, _PLACED) for module in model.modules()):
        raise OptionError(
            "the model's layers were placed by place_layers, which is for a training loop of your own, once: make the "
            "model anew, or leave place_layers out and say mesh='fsdp'"
        )


def _devices(devices: Sequence[str | torch.device] | None) -> list[torch.device]:
    if devices is None:
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        if not devices:
            raise OptionError("place_layers needs devices: this torch sees no GPU; name them, as in devices=['cpu']")
    chosen = [_device(device) for device in ([devices] if isinstance(devices, str) else devices)]
    if not chosen:
        raise OptionError("place_layers needs at least one device: got devices=[]")
    return chosen


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as err:
        raise OptionError(f"devices are torch's, such as 'cuda:0' or 'cpu': got {device!r}") from err


def _rooms(devices: list[torch.device], memory: Sequence[int | str] | None) -> list[int]:
    if memory is None:
        times = Counter(devices)
        return [int(SHARE_OF_STATES * process_memory_bytes(device) / times[device]) for device in devices]
    if isinstance(memory, str) or len(memory) != len(devices):
        shown = repr(memory) if isinstance(memory, str) else len(memory)
        raise OptionError(f"memory has one size a device, in a list: got {shown} for {len(devices)} devices")
    return [parse_size(size, "memory") for size in memory]


def _planned(layers: list[Layer], devices: list[torch.device], rooms: list[int], optimizer_bytes: float) -> list[int]:
    """Where each layer goes; says so in the log."""
    sizes = [layer.num_bytes(optimizer_bytes) for layer in layers]
    places = plan_places(sizes, rooms)
    room_of = [f"{device} has room for {shown_bytes(room)}" for device, room in zip(devices, rooms, strict=True)]
    if places is None:
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        raise OptionError(
            f"the model does not fit: with gradients and optimizer its layers take {shown_bytes(sum(sizes))}, the "
            f"largest ({', '.join(layers[largest].names)}) {shown_bytes(sizes[largest])}, and {', '.join(room_of)}; "
            "give more devices or memory, or an optimizer with less state (optimizer_bytes)"
        )
    for number in range(len(devices)):
        own = [index for index, place in enumerate(places) if place == number]
        names = [name for index in own for name in layers[index].names]
        size = shown_bytes(sum(sizes[index] for index in own))
        logger.info("%s, %s: %s", room_of[number], f"takes {size}", ", ".join(names) or "nothing")
    return places


def _put(layer: Layer, device: torch.device) -> None:
    for module in layer.modules:
        module.to(device)
        module.register_forward_pre_hook(_inputs_to(device), with_kwargs=True)
    for module in layer.owners:
        for param in module.parameters(recurse=False):
            param.data = param.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _inputs_to(device: torch.device) -> Callable[..., Any]:
    return partial(_arguments_to, device)


def _arguments_to(device: torch.device, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return _moved(args, device), _moved(kwargs, device)


def _output_to(device: torch.device, module: nn.Module, args: Any, output: Any) -> Any:
    return _moved(output, device)


def _moved(values: Any, device: torch.device) -> Any:
    """Tensors in tuples, lists and dicts too; autograd takes their gradients the way back."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), values)
