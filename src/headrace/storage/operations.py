"""What can be done at a place, wherever it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from headrace.storage import local_store
from headrace.storage.file import File
from headrace.storage.local import LocalFile
from headrace.storage.place import Place, locate
from headrace.storage.store import Entry
from headrace.storage.writing import remove_file

Where = str | os.PathLike[str] | Place


def open_file(place: Where, *, size: int | None = None) -> File:
    """The file, open for reading by ranges.

    Raises DamagedError if it is missing, StorageError if it may not be read.
    """
    return LocalFile(locate(place).path)


def read_bytes(place: Where) -> bytes:
    """All of a file's bytes. Errors as for `open_file`."""
    with open_file(place) as file:
        return bytes(file.read(0, file.size))


def write_bytes(place: Where, data: bytes | bytearray | memoryview) -> None:
    """Write a file whole or not at all; one of that name is replaced. Folders above a local file are made."""
    local_store.write(locate(place).path, data)


def upload(path: Path, place: Where) -> None:
    """Move a finished file from the local disk to a place, whole or not at all; `path` is gone afterwards."""
    local_store.move_in(path, locate(place).path)


def list_folder(place: Where) -> list[Entry]:
    """What lies directly in a folder, by name. Empty where there is no such folder: a store cannot tell."""
    return local_store.entries(locate(place).path)


def walk(place: Where) -> Iterator[Entry]:
    """Every file below a folder, in no order that holds for all stores; the listing is read as it is consumed."""
    return local_store.walk(locate(place).path)


def exists(place: Where) -> bool:
    """Whether there is a file, or a folder with something in it."""
    return local_store.exists(locate(place).path)


def is_folder(place: Where) -> bool:
    """Whether there is a folder; in a store, whether anything lies below that name."""
    return local_store.is_folder(locate(place).path)


def remove(place: Where) -> None:
    """Remove a file; one that is not there is fine."""
    remove_file(locate(place).path)


def put_if_absent(place: Where, data: bytes | bytearray | memoryview) -> bool:
    """Write a file whole, unless there is one of that name already: then False."""
    return local_store.put_if_absent(locate(place).path, data)
