"""What each rank writes of a checkpoint, and the writing of it, by torch.distributed.checkpoint.

Who writes what is planned once for tensors of the same names and shapes, and by every rank for itself out of what all
of them hold: replicas are divided among the ranks that have them. So before its tensors may change again a rank must
copy its own share only, and saving needs no further planning. Files are hashed as they are written, so what the disk
makes of them later is compared with what was meant.
"""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from headrace.train.dtensors import part
from headrace.train.world import World

Files = dict[str, dict[str, Any]]
"""Of each file by its name: `bytes` and `xxh3_128`."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank writes."""

    plan: SavePlan
    metadata: Metadata
    """The table of contents of the whole; where its parts lie is known once they are written."""

    def of(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's parts of the tensors that it writes something of, sharing their memory."""
        names = dict.fromkeys(item.index.fqn for item in self.plan.items)
        return {name: part(tensors[name]).detach() for name in names}


@dataclass(frozen=True, slots=True)
class Written:
    """What a rank has written."""

    results: list[WriteResult]
    files: Files


def plan_share(tensors: Mapping[str, Tensor], world: World) -> Share:
    """Divide the writing of these tensors among the ranks. Collective."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(tensors), None, world.rank == 0)
    plans, metadata = planner.create_global_plan(world.gather(planner.create_local_plan()))
    plans = FileSystemWriter(Path()).prepare_global_plan(plans)
    return Share(planner.finish_plan(plans[world.rank]), metadata)


def write_share(share: Share, parts: Mapping[str, Tensor], folder: Path) -> Written:
    """Write `parts`, as `share.of` gave them or copies, to files in the folder, which outlast a power cut."""
    files = _HashedFiles()
    results = _writer(folder, files).write_data(share.plan, _Parts(parts)).wait()
    return Written(results, files.written)


def write_table(share: Share, results: list[list[WriteResult]], folder: Path) -> Files:
    """Write the table of contents, once all ranks have written."""
    files = _HashedFiles()
    _writer(folder, files).finish(share.metadata, results)
    return files.written


def layout(tensors: Mapping[str, Tensor]) -> tuple[object, ...]:
    """What a plan depends on; the same on all ranks or different on all."""
    return tuple((name, one.shape, one.dtype, getattr(one, "placements", None)) for name, one in tensors.items())


class _Parts(DefaultSavePlanner):
    """Finds the tensor to write by its name among this rank's parts."""

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._parts = parts

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self._parts[index.fqn]


def _writer(folder: Path, files: _HashedFiles) -> FileSystemWriter:
    writer = FileSystemWriter(folder)
    writer.fs = files
    return writer


class _HashedFiles(FileSystem):
    """Files of the local disk; notes the size and checksum of those written."""

    def __init__(self) -> None:
        self.written: Files = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        with super().create_stream(path, mode) as raw:
            stream = _HashedStream(cast(io.BufferedWriter, raw))
            yield cast(io.IOBase, stream)
            self.written[Path(path).name] = {"bytes": stream.tell(), "xxh3_128": stream.digest.hexdigest()}

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


class _HashedStream:
    """A file that is written from its start to its end, and hashed on the way."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file, self._at = file, 0
        self.digest = xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self._at += memoryview(data).nbytes
        return self._file.write(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        # Asked for only before a flush to the disk, of which torch leaves out its own buffer.
        self._file.flush()
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


class HostCopies:
    """Memory of the host that parts are copied to before the model may change again; used for every save anew."""

    def __init__(self) -> None:
        self._room: dict[str, Tensor] = {}

    def of(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies, which stay as they are until the next call."""
        self._room = {name: self._room_for(name, value) for name, value in parts.items()}
        on_gpu = [self._room[name].copy_(value, non_blocking=True) for name, value in parts.items() if value.is_cuda]
        for name, value in parts.items():
            if not value.is_cuda:
                self._room[name].copy_(value)
        if on_gpu:
            torch.cuda.synchronize()
        return dict(self._room)

    def _room_for(self, name: str, value: Tensor) -> Tensor:
        room = self._room.get(name)
        if room is None or room.shape != value.shape or room.dtype != value.dtype:
            room = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return room
