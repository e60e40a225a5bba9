"""What can be done at a place, wherever it is.

Every operation on a store is tried again until its deadline (`ReadOptions`), raises StorageError where the store
refuses or does not answer in time, and DamagedError where a file to be read is missing. All are safe to call from
several threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from headrace.storage import local_store
from headrace.storage.file import File
from headrace.storage.local import LocalFile
from headrace.storage.place import Place, locate
from headrace.storage.refusal import storage_refusals
from headrace.storage.retrying import ReadOptions, persist
from headrace.storage.store import Data, Entry, Failure, Store, Trouble
from headrace.storage.stores import store_for
from headrace.storage.writing import remove_file

T = TypeVar("T")
Where = str | os.PathLike[str] | Place


def open_file(
    place: Where, *, size: int | None = None, version: str | None = None, options: ReadOptions | None = None
) -> File:
    """The file, open for reading by ranges. A `size` that is known spares a request to a store, and is checked; so is
    a `version` that `file_version` has given.

    Raises DamagedError if the file is missing, StorageError if it may not be read.
    """
    place = locate(place)
    if place.is_local:
        return LocalFile(place)
    from headrace.storage.remote import RemoteFile

    return RemoteFile(place, size, options, version)


def file_version(place: Place, *, options: ReadOptions | None = None) -> tuple[int, str | None]:
    """The length in bytes of a file in a store, and which content it is, where the store says that. Errors as above."""
    return _persist("read", place, options, lambda store, limit: store.version(place, limit))


def read_bytes(place: Where, *, options: ReadOptions | None = None) -> bytes:
    """All of a file's bytes, by one request. Errors as for `open_file`."""
    place = locate(place)
    if place.is_local:
        with LocalFile(place) as file:
            return file.read_all()
    return _persist("read", place, options, lambda store, limit: store.get(place, limit).data)


def write_bytes(place: Where, data: Data, *, options: ReadOptions | None = None) -> None:
    """Write a file whole or not at all; one of that name is replaced. Folders above a local file are made."""
    place = locate(place)
    if place.is_local:
        local_store.write(place.path, data)
    else:
        _persist("write", place, options, lambda store, limit: store.put(place, data, limit))


def upload(path: Path, place: Where, *, options: ReadOptions | None = None) -> None:
    """Move a finished file from the local disk to a place, whole or not at all; `path` is gone afterwards.

    To a store it goes in parts, each of which may take the whole deadline.
    """
    place = locate(place)
    with storage_refusals("read", path):
        path.stat()
    if place.is_local:
        local_store.move_in(path, place.path)
        return
    _persist("write", place, options, lambda store, limit: store.upload(path, place, limit))
    remove_file(path)


def list_folder(place: Where, *, options: ReadOptions | None = None) -> list[Entry]:
    """What lies directly in a folder, by name. Empty where there is no such folder: a store cannot tell.

    Raises StorageError for a web server, unless it speaks WebDAV.
    """
    place = locate(place)
    if place.is_local:
        return local_store.entries(place.path)
    return sorted(set(_persist("list", place, options, lambda store, limit: store.entries(place, limit))))


def walk(place: Where, *, options: ReadOptions | None = None) -> Iterator[Entry]:
    """Every file below a folder, in an order that is the store's own; the listing is fetched as it is consumed.

    Errors as for `list_folder`.
    """
    place = locate(place)
    return local_store.walk(place.path) if place.is_local else _walk(place, options)


def exists(place: Where, *, options: ReadOptions | None = None) -> bool:
    """Whether there is a file, or a folder with something in it."""
    place = locate(place)
    if place.is_local:
        return local_store.exists(place.path)
    return _persist("read", place, options, lambda store, limit: store.is_file(place, limit)) or is_folder(
        place, options=options
    )


def is_folder(place: Where, *, options: ReadOptions | None = None) -> bool:
    """Whether there is a folder; in a store, whether anything lies below that name. False for a web server."""
    place = locate(place)
    if place.is_local:
        return local_store.is_folder(place.path)
    return _persist("list", place, options, lambda store, limit: store.is_folder(place, limit))


def remove(place: Where, *, options: ReadOptions | None = None) -> None:
    """Remove a file; one that is not there is fine."""
    place = locate(place)
    if place.is_local:
        remove_file(place.path)
    else:
        _persist("remove", place, options, lambda store, limit: store.remove(place, limit))


def put_if_absent(place: Where, data: Data, *, options: ReadOptions | None = None) -> bool:
    """Write a file whole, unless there is one of that name already: then False.

    Of several writers at once one wins, on a local disk, S3, Google's and Azure's stores and in memory. S3-compatible
    stores that ignore conditions, and file systems behind fsspec, only look first: a `Lease` finds out which it is.
    Where an answer was lost and the file that is there has this very content, it counts as written.
    """
    place = locate(place)
    if place.is_local:
        return local_store.put_if_absent(place.path, data)
    is_unsure = False

    def create(store: Store, limit: float) -> bool:
        nonlocal is_unsure
        try:
            return store.create(place, data, limit) or (is_unsure and store.get(place, limit).data == data)
        except Trouble:
            is_unsure = True
            raise

    return _persist("write", place, options, create)


def _persist(action: str, place: Place, options: ReadOptions | None, once: Callable[[Store, float], T]) -> T:
    store = store_for(place)
    return persist(action, place, options, lambda limit: once(store, limit))


def _walk(place: Place, options: ReadOptions | None) -> Iterator[Entry]:
    store, after = store_for(place), ""
    pages: Iterator[list[Entry]] | None = None

    def next_page(limit: float) -> list[Entry] | None:
        nonlocal pages
        try:
            pages = pages or store.walk(place, after, limit)
            return next(pages, None)
        except Failure:
            pages = None  # the next attempt goes on after what was given out
            raise

    while (page := persist("list", place, options, next_page)) is not None:
        after = page[-1].name if page else after
        yield from page
