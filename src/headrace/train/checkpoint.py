"""What a checkpoint is: a folder of the tensors' files and, written last, `state.json`.

The tensors are torch.distributed.checkpoint's, at least one file a rank and one with their table of contents.
`state.json` says the step, the loader's state, and of every other file its size and xxh3-128; the last of its keys is
the xxh3-128 of all that stands before it. So whatever is missing, cut short or changed later is found before any of it
is used. It is the mark of completeness, too: a folder without it is never read.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load

from headrace.errors import CheckpointError, DamagedError, StateError, StorageError
from headrace.storage import Place, exists, list_folder, locate, open_file, read_bytes
from headrace.train.metadata import TensorReader
from headrace.train.world import World

VERSION = 2
FOLDER = "checkpoints"
STATE = "state.json"
PARTIAL = ".partial"
"""Ends the name of a folder on a local disk that is being written."""

_SEAL = "xxh3_128"
_KEYS = ("step", "samples", "loader", "optimizer", "numbers", "files")
_NAME = re.compile(r"step-(\d{8,})")
_CHUNK_BYTES = 1 << 20

Where = str | os.PathLike[str] | Place


def name_of(step: int) -> str:
    """What the checkpoint of a step is called."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of the checkpoint of this name; None: no checkpoint is called so."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found[1])


def shown(place: Place) -> Path | Place:
    """A checkpoint as a person names it: a path where it is one."""
    return place.path if place.is_local else place


def complete_checkpoints(folder: Where) -> list[Place]:
    """The complete checkpoints in a folder, here or in a store, newest first."""
    folder = locate(folder)
    steps = {step_of(entry.name): folder / entry.name for entry in list_folder(folder) if entry.is_folder}
    found = sorted((step for step in steps if step is not None), reverse=True)
    return [steps[step] for step in found if exists(steps[step] / STATE)]


def sealed(state: Mapping[str, Any]) -> bytes:
    """The content of `state.json`; `state` has the keys that `read_state` asks for, but the version."""
    body = {"version": VERSION, **state}
    return json.dumps({**body, _SEAL: _seal(body)}).encode()


def read_state(where: Where) -> dict[str, Any]:
    """What `state.json` of a complete checkpoint says.

    Raises CheckpointError when it is no checkpoint, of another version, or not what was written.
    """
    place = locate(where)
    if place.name.endswith(PARTIAL):
        raise CheckpointError(f"{place} is no complete checkpoint: its writing was cut off; name another")
    state = _parsed(place)
    if state.get("version") != VERSION:
        raise CheckpointError(
            f"{place} is of version {state.get('version')}, this release reads {VERSION}: use the release it is of"
        )
    if state.pop(_SEAL, None) != _seal(state):
        raise CheckpointError(f"{place / STATE} differs from its checksum: it was changed or damaged after its writing")
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise CheckpointError(f"{place} is no complete checkpoint: {STATE} has no {', '.join(missing)}")
    return state


def check_files(where: Where, files: Mapping[str, Mapping[str, Any]], world: World) -> None:
    """Read every file of a checkpoint once, each rank its share, and compare it with what its state says. Collective.

    Raises CheckpointError, on all ranks, for the first that is missing, cut short or changed.
    """
    place = locate(where)
    mine = sorted(files)[world.rank :: world.size]
    fault = next(filter(None, (_fault(place / Path(name).name, files[name]) for name in mine)), None)
    faults = [found for found in world.gather(fault) if found is not None]
    if faults:
        raise CheckpointError(faults[0])


def read_tensors(
    source: Where | TensorReader, room: Callable[[Metadata], dict[str, Tensor]], world: World
) -> dict[str, Tensor]:
    """Read a checkpoint into the tensors that `room` gives for its table of contents. Collective.

    A reader that is given has read that table already.

    Raises CheckpointError, on all ranks, when it cannot be read, and StateError where `room` does on one.
    """
    reader = source if isinstance(source, TensorReader) else TensorReader(source)
    tensors, error = {}, None
    try:
        tensors = room(reader.read_metadata())
    except (CheckpointError, StateError) as err:
        error = type(err)(str(err))
    errors = [found for found in world.gather(error) if found is not None]
    if errors:
        raise errors[0]
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with quietly():
            load(tensors, storage_reader=reader, planner=planner, no_dist=world.size == 1)
    except CheckpointException as err:
        raise CheckpointError(f"{reader.place} cannot be read: {_reason(err)}") from err
    return tensors


@contextmanager
def quietly() -> Iterator[None]:
    """Without a process group torch takes that for an oversight, and says so: not in this block."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _parsed(place: Place) -> dict[str, Any]:
    try:
        state = json.loads(read_bytes(place / STATE))
    except (DamagedError, StorageError) as err:
        raise CheckpointError(f"{place} is no complete checkpoint: {err}") from err
    except ValueError as err:
        raise CheckpointError(f"{place} is no complete checkpoint: {STATE} is malformed ({err})") from err
    if not isinstance(state, dict):
        raise CheckpointError(f"{place} is no complete checkpoint: {STATE} is malformed (a {type(state).__name__})")
    return state


def _seal(body: Mapping[str, Any]) -> str:
    # Of the text, which is the same after reading it and writing it again.
    return xxhash.xxh3_128_hexdigest(json.dumps(body).encode())


def _fault(place: Place, expected: Mapping[str, Any]) -> str | None:
    try:
        if not exists(place):
            return f"{place} is missing: it should have {expected['bytes']:,} bytes"
        with open_file(place) as file:
            if file.size != expected["bytes"]:
                return f"{place} should have {expected['bytes']:,} bytes: has {file.size:,}"
            digest = xxhash.xxh3_128()
            with file.stream() as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
    except (DamagedError, StorageError) as err:
        return str(err)
    return None if digest.hexdigest() == expected[_SEAL] else f"{place} differs from its checksum: it is damaged"


def _reason(error: CheckpointException) -> str:
    """One line on what went wrong first."""
    rank, (cause, _) = min(error.failures.items())
    if isinstance(cause, CheckpointError | DamagedError | StorageError):
        return str(cause)
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''} (rank {rank})"
