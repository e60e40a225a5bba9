"""Reading a checkpoint's table of contents without running what it says.

torch.distributed.checkpoint keeps that table (`.metadata`) as a pickle, and a pickle may name any function to call. So
it is unpickled here by a reader that knows a dozen names, none of which does anything but hold values; the tables it
gives may then only describe tensors, in files of the checkpoint's own folder. The tensors themselves are read by torch
with `weights_only`.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from headrace.errors import CheckpointError

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


class TensorReader(FileSystemReader):
    """Reads a checkpoint that holds tensors and nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table of contents. Raises CheckpointError for one that is not only a table of tensors."""
        path = Path(self.path) / ".metadata"
        try:
            with open(path, "rb") as file:
                metadata = _Unpickler(file).load()
        except OSError as err:
            raise CheckpointError(f"cannot read {path}: {err.strerror}") from err
        except CheckpointError as err:
            raise CheckpointError(f"{path} {err}") from err
        except Exception as err:
            raise CheckpointError(f"{path} is not a checkpoint's table of contents: {err}") from err
        _check(metadata, path)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        checked: Metadata = metadata
        return checked


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED or (module == "torch" and name in _DTYPES):
            return super().find_class(module, name)
        raise CheckpointError(
            f"names {module}.{name}, which has no place in a table of tensors: do not load this checkpoint"
        )


def _check(metadata: Any, path: Path) -> None:
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
