"""A trained model as one file: the weights of a checkpoint in the safetensors format.

The format is a small JSON table and the tensors' bytes behind it, so it is written here directly, one tensor after the
other: memory holds the largest tensor, where safetensors' own writer wants all of them at once. No process group is
needed, however many ranks wrote the checkpoint, and nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from headrace.errors import CheckpointError
from headrace.storage import Place, make_folder, replace_file, storage_refusals
from headrace.train.average import PREFIX as _AVERAGED
from headrace.train.checkpoint import check_files, name_of, read_state, read_tensors
from headrace.train.metadata import TensorReader
from headrace.train.rundir import first_readable, named_checkpoints
from headrace.train.world import World

_MODEL = "model."
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
_HERE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path
    step: int
    """Of the checkpoint that it was taken from."""
    tensors: int
    bytes: int
    """Size of the file."""
    averaged: bool
    """Whether trained parameters are the averaged ones."""


def export_safetensors(
    source: str | os.PathLike[str] | Place,
    path: str | os.PathLike[str],
    *,
    best: bool = False,
    averaged: bool | None = None,
) -> Exported:
    """Write a model's parameters and buffers, under its own names for them, to one safetensors file.

    `source`: a run's folder, or a folder or URL of checkpoints, of which the newest readable one is taken; or one of
    them. `best` takes the run's best instead (`Trainer(keep_best=)`). A file at `path` is replaced by a whole one.
    `averaged`: whether to take the averaged weights (`Trainer(ema=)`); None: where evaluations were of them. Memory
    holds one tensor at a time. Raises CheckpointError when there is no such checkpoint, it is damaged, or it has not
    all that is asked for.
    """
    places = named_checkpoints(source)
    if best:
        places = [_best_of(places)]
    found = first_readable(places, lambda place, state: check_files(place, state["files"], _HERE), _HERE)
    assert found is not None
    reader = TensorReader(found.path)
    _check_whole(found.state, found.path)
    entries = _model_entries(reader)
    averages = _averages(reader, found.state, averaged)
    target = Path(path)
    make_folder(target.parent)
    temporary = target.with_name(target.name + ".partial")
    with storage_refusals("write", target):
        try:
            size = _write(temporary, _header(entries, found.state["step"]), _tensors(reader, entries, averages))
            replace_file(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return Exported(target, found.state["step"], len(entries), size, bool(averages))


def _best_of(places: list[Place]) -> Place:
    """The best checkpoint, by what the newest says."""
    best = read_state(places[0]).get("best")
    if best is None:
        raise CheckpointError(
            f"{places[0]} names no best checkpoint: train with keep_best, or export the newest without --best"
        )
    name = name_of(best["step"])
    found = next((place for place in places if place.name == name), None)
    if found is None:
        raise CheckpointError(f"the best checkpoint, {name}, is not there: give the run's folder, or leave out --best")
    return found


def _check_whole(state: dict[str, Any], place: Path | Place) -> None:
    if state.get("frozen") is not None:
        raise CheckpointError(
            f"{place} leaves out the frozen parameters (save_frozen=False), and a file must have all: use the model's "
            "own save_pretrained for adapters, or train with save_frozen=True"
        )


def _averages(reader: TensorReader, state: dict[str, Any], wanted: bool | None) -> set[str]:
    """The names of the tensors of which to take the average: all that have one, or none."""
    names = reader.read_metadata().state_dict_metadata
    found = {name.removeprefix(_AVERAGED) for name in names if name.startswith(_AVERAGED)}
    if wanted and not found:
        raise CheckpointError(f"{reader.place} has no averaged weights: train with ema, or leave out --averaged")
    return found if (state.get("evaluates_average", True) if wanted is None else wanted) else set()


def _model_entries(reader: TensorReader) -> dict[str, TensorStorageMetadata]:
    """The model's tensors by their own names, in safetensors' order: large elements first, so that all are aligned."""
    entries: dict[str, TensorStorageMetadata] = {}
    for name, entry in reader.read_metadata().state_dict_metadata.items():
        if name.startswith(_MODEL):
            assert isinstance(entry, TensorStorageMetadata)
            if entry.properties.dtype not in _DTYPES:
                raise CheckpointError(f"safetensors has no {entry.properties.dtype}, which {name!r} is: cast it first")
            entries[name.removeprefix(_MODEL)] = entry
    return dict(sorted(entries.items(), key=lambda item: (-item[1].properties.dtype.itemsize, item[0])))


def _header(entries: dict[str, TensorStorageMetadata], step: int) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt", "step": str(step)}}
    at = 0
    for name, entry in entries.items():
        end = at + entry.size.numel() * entry.properties.dtype.itemsize
        table[name] = {"dtype": _DTYPES[entry.properties.dtype], "shape": list(entry.size), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _tensors(reader: TensorReader, entries: dict[str, TensorStorageMetadata], averages: set[str]) -> Iterator[Tensor]:
    for name, entry in entries.items():
        key = (_AVERAGED if name in averages else _MODEL) + name
        saved = reader.read_metadata().state_dict_metadata[key]
        assert isinstance(saved, TensorStorageMetadata)
        room = {key: torch.empty(saved.size, dtype=saved.properties.dtype)}
        found = read_tensors(reader, lambda _, room=room: room, _HERE)[key]  # type: ignore[misc]
        yield found.to(entry.properties.dtype)  # averages are kept in fp32 at least


def _write(path: Path, header: bytes, tensors: Iterator[Tensor]) -> int:
    with open(path, "wb") as file:
        file.write(header)
        for tensor in tensors:
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
