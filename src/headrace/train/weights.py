"""Starting from weights that somebody saved: safetensors into a model, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from headrace.errors import StateError
from headrace.train.dtensors import part, place
from headrace.train.tensor_files import StoredTensor, stored_tensors

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Loaded:
    """What did not find its counterpart; empty where all did."""

    missing: tuple[str, ...]
    """Names of the model that the file has not; they keep their values."""
    unexpected: tuple[str, ...]
    """Names of the file that the model has not."""


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    strict: bool = True,
    prefix: str = "",
    rename: Callable[[str], str | None] | None = None,
) -> Loaded:
    """Fill a model with the weights of a safetensors file, or of a folder such as a Hugging Face checkpoint's.

    To be called before `fit`, on every process. Values are converted to the model's dtypes. Of a folder, what
    `model.safetensors.index.json` names is read, or `model.safetensors`, or the only file of its kind.

    - `prefix`: only names that begin with it are taken, without it.
    - `rename(name)` gives the model's name for a name of the file (without the prefix); None leaves the tensor out.
    - `strict=False`: names that only one of them has are left out, and returned.

    Raises StateError, naming them, for names or shapes that differ, and CheckpointError for files that cannot be read
    or are pickles; the model is as it was then.
    """
    stored = _renamed(stored_tensors(Path(path)), prefix, rename)
    own = dict(model.state_dict(keep_vars=True))
    targets = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    given = {id(targets[name]) for name in stored.keys() & targets.keys()}
    # Of tied weights one name is enough: they are one tensor.
    missing = tuple(name for name, target in targets.items() if name not in stored and id(target) not in given)
    loaded = Loaded(missing, tuple(name for name in stored if name not in targets))
    _check(Path(path), loaded, stored, targets, strict)
    with torch.no_grad():
        for name in stored.keys() & targets.keys():
            target = targets[name]
            part(target).copy_(stored[name].read()[place(target)])
    return loaded


def _renamed(
    stored: Mapping[str, StoredTensor], prefix: str, rename: Callable[[str], str | None] | None
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        if name.startswith(prefix):
            short = name.removeprefix(prefix)
            own = short if rename is None else rename(short)
            if own in found:
                raise StateError(f"rename must give each tensor a name of its own: two of the file become {own!r}")
            if own is not None:
                found[own] = tensor
    return found


def _check(
    path: Path, loaded: Loaded, stored: Mapping[str, StoredTensor], targets: Mapping[str, Tensor], strict: bool
) -> None:
    differ = [
        f"{name} is {_kind(stored[name])} there and {_kind(target)} here"
        for name, target in targets.items()
        if name in stored and _kind(stored[name]) != _kind(target)
    ]
    faults = [f"shapes or kinds differ: {_listed(differ)}"] if differ else []
    if strict and loaded.missing:
        faults.append(f"missing in it: {_listed(loaded.missing)}")
    if strict and loaded.unexpected:
        faults.append(f"not in the model: {_listed(loaded.unexpected)}")
    if not strict and not stored.keys() & targets.keys():
        faults.append(f"no name is the same, such as {next(iter(stored), 'none')} and {next(iter(targets), 'none')}")
    if faults:
        raise StateError(f"{path} holds weights of another model: {'; '.join(faults)}; {_way_out(bool(differ))}")
    unreal = [name for name, target in targets.items() if name in stored and target.is_meta]
    if unreal:
        raise StateError(
            f"weights need memory to go to: {_listed(unreal)} of the model lies on device meta; call "
            "model.to_empty(device='cpu') first, and set what the file does not hold"
        )


def _kind(tensor: Tensor | StoredTensor) -> str:
    """Shape, and whether it counts or measures: what a conversion of dtypes must not change."""
    dtype = tensor.dtype
    return f"{'' if dtype.is_floating_point else f'{dtype} '.removeprefix('torch.')}{tuple(tensor.shape)}"


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _way_out(differ: bool) -> str:
    if differ:
        return "make the model of the same sizes, or leave these out by rename=lambda name: ... returning None"
    return "map names by prefix= or rename=, or say strict=False to load what both have"
