"""Reading safetensors: one file, or a folder in which an index says which file has what.

A file is eight bytes of length, that many of JSON (name -> dtype, shape, place), and the tensors' bytes behind them. So
it is read here without a library, and nothing in it can run. Files that are pickles are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrace.errors import CheckpointError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LARGEST_HEADER = 100 << 20  # bytes; the format's own bound
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the file."""

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Raises CheckpointError when the file ends before it does."""
        size = math.prod(self.shape) * self.dtype.itemsize
        data = torch.empty(size, dtype=torch.uint8)
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset)
                _fill(file, data.numpy().data, self.path)
        except OSError as err:
            raise CheckpointError(f"cannot read {self.path}: {err.strerror}") from err
        return data.view(self.dtype).reshape(self.shape)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """What a file or a folder of weights holds, by name; only headers are read.

    Raises CheckpointError for what is not safetensors, is cut short, or lies in more files than there are.
    """
    found: dict[str, StoredTensor] = {}
    for file in _files(path):
        found |= dict(_header(file))
    if not found:
        raise CheckpointError(f"{path} holds no tensor: name a file of weights")
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        _refuse_pickle(path)
        return _indexed(path) if path.suffix == ".json" else [path]
    if (path / INDEX).is_file():
        return _indexed(path / INDEX)
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    alone = sorted(path.glob("*.safetensors"))
    if len(alone) == 1:
        return alone
    for file in sorted(path.iterdir()):
        if not alone:
            _refuse_pickle(file)
    several = f"{len(alone)} .safetensors files without an index: name one" if alone else "no .safetensors file"
    raise CheckpointError(f"{path} has neither {INDEX} nor {SINGLE}, and {several}")


def _refuse_pickle(path: Path) -> None:
    if path.suffix in _PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, which may run code when it is read: weights are read from safetensors only; convert "
            "it where you trust it, by safetensors.torch.save_file(torch.load(path, weights_only=True), ...)"
        )


def _indexed(path: Path) -> list[Path]:
    try:
        names = json.loads(path.read_bytes())["weight_map"].values()
        files = sorted({str(name) for name in names})
    except OSError as err:
        raise CheckpointError(f"cannot read {path}: {err.strerror}") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(f"{path} is no index of weights: it has no table weight_map ({err})") from err
    for name in files:
        if Path(name).name != name:
            raise CheckpointError(f"{path} names {name!r}: not a plain file beside it")
        _refuse_pickle(path.with_name(name))
    return [path.with_name(name) for name in files]


def _header(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise CheckpointError(f"{path} is not a safetensors file, or is cut short: name one, or fetch it again")
            table = json.loads(file.read(length))
        for name, entry in table.items():
            if name != "__metadata__":
                yield name, _entry(path, name, entry, first=8 + length, size=size)
    except OSError as err:
        raise CheckpointError(f"cannot read {path}: {err.strerror}") from err
    except (ValueError, AttributeError) as err:
        raise CheckpointError(f"{path} is not a safetensors file: its header is malformed ({err})") from err


def _entry(path: Path, name: str, entry: Any, *, first: int, size: int) -> StoredTensor:
    try:
        begin, end = entry["data_offsets"]
        dtype, shape = _DTYPES[entry["dtype"]], tuple(int(length) for length in entry["shape"])
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"{path} describes {name!r} in a way that is not understood: {entry!r}") from err
    if min(shape, default=0) < 0 or begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(f"{path} describes {name!r} by a place that does not fit its shape: {entry!r}")
    if first + end > size:
        raise CheckpointError(f"{path} has {size:,} bytes and should have at least {first + end:,}: fetch it again")
    return StoredTensor(path, dtype, shape, first + begin)


def _fill(file: Any, room: memoryview, path: Path) -> None:
    while len(room):
        count = file.readinto(room)
        if not count:
            raise CheckpointError(f"{path} ends before its tensors do: fetch it again")
        room = room[count:]
