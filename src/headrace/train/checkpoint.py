"""Checkpoints of a run: one folder each, complete or not there.

`RUN/checkpoints/step-00000120` appears by a rename after everything in it is on the disk, so the name is the mark of
completeness: whatever is killed earlier leaves a `.partial` folder, which is never loaded and is removed when a run
starts. Each holds the tensors (torch.distributed.checkpoint, written by all ranks), and `state.json`: the step, the
loader's state, and the sizes of its files, by which one that was cut short later is recognised.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from headrace.errors import CheckpointError
from headrace.train.metadata import TensorReader
from headrace.train.world import World

VERSION = 1
FOLDER = "checkpoints"
_STATE = "state.json"
_KEYS = ("step", "samples", "loader", "optimizer", "numbers", "files")
_PARTIAL = ".partial"
_ASIDE = ".set-aside"
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that was just committed."""

    path: Path
    bytes: int
    sec: float


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run_dir: Path, world: World, keep: int) -> None:
        self.folder = run_dir / FOLDER
        self._world = world
        self._keep = keep

    def clean(self) -> None:
        """Remove what a killed process left half-written. For rank 0, before any is written."""
        for path in self.folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(path)

    def set_aside(self, step: int) -> None:
        """Rename those beyond `step`, where the run goes on: they are unreadable, or of a history that is left."""
        for path in self.complete():
            if _step_of(path) > step:
                aside = path.with_name(path.name + _ASIDE)
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)

    def complete(self) -> list[Path]:
        """Paths of the complete ones, newest first."""
        return complete_checkpoints(self.folder)

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> Saved:
        """Write and commit a checkpoint, and remove those beyond the newest `keep`. Collective.

        Raises CheckpointError, on all ranks, when the disk is full or refuses; earlier checkpoints are untouched.
        """
        began = time.perf_counter()
        final = self.folder / f"step-{step:08d}"
        partial = final.with_name(final.name + _PARTIAL)
        with self._told(step, partial):
            self._world.agree(lambda: _make_new(partial))
            _save_tensors(tensors, partial, self._world)
            size = self._world.agree(lambda: self._commit(partial, final, state))
        return Saved(final, size, time.perf_counter() - began)

    def _commit(self, partial: Path, final: Path, state: dict[str, Any]) -> int:
        try:
            sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
            _write_durably(partial / _STATE, json.dumps({"version": VERSION, **state, "files": sizes}).encode())
            _sync_folder(partial)
            if final.exists():
                _remove(final)  # of a history that this run does not continue
            partial.rename(final)
            _sync_folder(self.folder)
            for path in self.complete()[self._keep :]:
                _remove(path)
        except OSError as err:
            raise CheckpointError(err.strerror or str(err)) from err
        return sum(sizes.values())

    @contextmanager
    def _told(self, step: int, partial: Path) -> Iterator[None]:
        try:
            yield
        except (CheckpointError, CheckpointException) as err:
            if self._world.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {_reason(err)}; "
                "earlier checkpoints are intact: make room, or choose another run folder, and go on from them"
            ) from err


def complete_checkpoints(folder: Path) -> list[Path]:
    """Paths of the complete checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / _STATE).is_file()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def read_state(path: Path) -> dict[str, Any]:
    """What `state.json` of a complete checkpoint says.

    Raises CheckpointError when it is no checkpoint, of a later version, or a file is missing or cut short.
    """
    if path.name.endswith(_PARTIAL):
        raise CheckpointError(f"{path} is no complete checkpoint: its writing was cut off; name another")
    try:
        state = json.loads((path / _STATE).read_bytes())
        version = state["version"]
    except OSError as err:
        raise CheckpointError(f"{path} is no complete checkpoint: {_STATE} cannot be read ({err.strerror})") from err
    except (ValueError, KeyError, TypeError) as err:
        raise CheckpointError(f"{path} is no complete checkpoint: {_STATE} is malformed ({err})") from err
    if version != VERSION:
        raise CheckpointError(f"{path} is of version {version}, this release reads {VERSION}: use the release it is of")
    missing = [key for key in _KEYS if key not in state]
    if missing:
        raise CheckpointError(f"{path} is no complete checkpoint: {_STATE} has no {', '.join(missing)}")
    for name, size in state["files"].items():
        file = path / Path(name).name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise CheckpointError(
                f"{file} should have {size:,} bytes: " + (f"has {found:,}" if found is not None else "missing")
            )
    read: dict[str, Any] = state
    return read


def read_tensors(path: Path, room: Callable[[Metadata], dict[str, Tensor]], world: World) -> dict[str, Tensor]:
    """Read a checkpoint into the tensors that `room` gives for its table of contents. Collective.

    Raises CheckpointError, on all ranks, when it cannot be read. `room` may raise StateError, on all ranks.
    """
    reader = TensorReader(path)
    tensors, error = {}, None
    try:
        tensors = room(reader.read_metadata())
    except CheckpointError as err:
        error = str(err)
    errors = [found for found in world.gather(error) if found is not None]
    if errors:
        raise CheckpointError(errors[0])
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        with _quietly():
            load(tensors, storage_reader=reader, planner=planner, no_dist=world.size == 1)
    except CheckpointException as err:
        raise CheckpointError(f"{path} cannot be read: {_reason(err)}") from err
    return tensors


def _save_tensors(tensors: dict[str, Tensor], path: Path, world: World) -> None:
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _quietly():
        save(tensors, storage_writer=FileSystemWriter(path), planner=planner, no_dist=world.size == 1)


@contextmanager
def _quietly() -> Iterator[None]:
    # With one process there is no process group, which dcp takes for an oversight and says so.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _make_new(path: Path) -> None:
    try:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True)
    except OSError as err:
        raise CheckpointError(err.strerror or str(err)) from err


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    """Remove a checkpoint; a kill meanwhile leaves a partial one, not a damaged one."""
    doomed = path.with_name(f"{path.name}.old{_PARTIAL}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _reason(error: BaseException) -> str:
    """One line on what went wrong first."""
    if isinstance(error, CheckpointException):
        rank, (cause, _) = min(error.failures.items())
        if isinstance(cause, CheckpointError):
            return str(cause)
        number = getattr(cause, "errno", None)
        if number is not None:
            return f"{os.strerror(number)} (rank {rank})"
        if _is_short_write(cause):
            return f"{os.strerror(errno.ENOSPC)}, or a limit on file sizes (rank {rank})"
        return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''} (rank {rank})"
    return str(error)


def _is_short_write(cause: BaseException) -> bool:
    """torch's zip writer says only that a write went wrong, in words of its own."""
    return isinstance(cause, RuntimeError) and "PytorchStreamWriter failed" in str(cause)
