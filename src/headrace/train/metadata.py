"""Reading a checkpoint's table of contents without running what it says.

torch.distributed.checkpoint keeps that table (`.metadata`) as a pickle, and a pickle may name any function to call. So
it is unpickled here by a reader that knows a dozen names, none of which does anything but hold values; the tables it
gives may then only describe tensors, in files of the checkpoint's own folder. The tensors themselves are read by torch
with `weights_only`.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import torch
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from headrace.errors import CheckpointError, DamagedError, StorageError
from headrace.storage import File, Place, locate, open_file, read_bytes

_ADMITTED = {
    ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "Metadata"),
    ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
    ("torch.distributed.checkpoint.metadata", "StorageMeta"),
    ("torch.distributed.checkpoint.metadata", "TensorProperties"),
    ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # where Python 3.13 keeps it
}
_PLAIN_NAME = re.compile(r"\w[\w.]*")
_DTYPES = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}


_BUFFER_BYTES = 1 << 20  # of a file in a store: what torch reads of a small tensor is one request


class TensorReader(FileSystemReader):
    """Reads a checkpoint that holds tensors and nothing else, here or in a store; its table of contents once."""

    def __init__(self, where: str | os.PathLike[str] | Place) -> None:
        place = locate(where)
        super().__init__(place.name)
        self.place = place
        self._table: Metadata | None = None
        self.fs = _Files(place)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table of contents. Raises CheckpointError for one that is not only a table of tensors."""
        if self._table is None:
            self._table = self._read_table(self.place / ".metadata")
        return self._table

    def _read_table(self, path: Place) -> Metadata:
        try:
            metadata = _Unpickler(io.BytesIO(read_bytes(path))).load()
        except (DamagedError, StorageError) as err:
            raise CheckpointError(str(err)) from err
        except CheckpointError as err:
            raise CheckpointError(f"{path} {err}") from err
        except Exception as err:
            raise CheckpointError(f"{path} is not a checkpoint's table of contents: {err}") from err
        _check(metadata, path)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        checked: Metadata = metadata
        return checked


class _Files(FileSystem):
    """The files of one checkpoint, for torch's reader; of a name it is given only the last part counts."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        with open_file(self._place / os.path.basename(path)) as file:
            yield cast(io.IOBase, io.BufferedReader(_Seekable(file), _BUFFER_BYTES if file.is_remote else 1 << 13))


class _Seekable(io.RawIOBase):
    """A file as Python's own streams are."""

    def __init__(self, file: File) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # whatever can be written to
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._file.size - self._at))
        if length:
            self._file.read_into(self._at, view[:length])
        self._at += length
        return length


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED or (module == "torch" and name in _DTYPES):
            return super().find_class(module, name)
        raise CheckpointError(
            f"names {module}.{name}, which has no place in a table of tensors: do not load this checkpoint"
        )


def _check(metadata: Any, path: Place) -> None:
    tables = (getattr(metadata, "state_dict_metadata", None), getattr(metadata, "storage_data", None))
    if not isinstance(metadata, Metadata) or not all(isinstance(table, dict) for table in tables):
        raise CheckpointError(f"{path} is not a checkpoint's table of contents: it is a {type(metadata).__name__}")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(f"{path} holds {name!r} as a pickled object: only tensors are read")
    for place in metadata.storage_data.values():
        file = getattr(place, "relative_path", None)
        if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file) or place.transform_descriptors:
            raise CheckpointError(f"{path} points to {file!r}: not a plain file of the checkpoint")
