"""The store that a place is in: one for each bucket or host, process and environment.

obstore's threads do not survive a fork: a request in the child would wait for ever. So a process that was forked from
one that had used a store is told at once. Nothing of a store is pickled; the other process makes its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from headrace.errors import StorageError
from headrace.storage.place import OBJECT_SCHEMES, Place
from headrace.storage.store import Store

_PREFIXES = ("AWS_", "AZURE_", "AZURITE_", "GOOGLE_", "FSSPEC_", "STORAGE_EMULATOR_HOST", "NO_GCE_CHECK")


class _Process:
    """What this process holds, and whether it is a fork of one that held stores."""

    def __init__(self) -> None:
        self.stores: dict[tuple[object, ...], Store] = {}
        self.lock = threading.Lock()
        self.is_broken_fork = False


_PROCESS = _Process()


def store_for(place: Place) -> Store:
    """The store, made at the first call. Safe to call from several threads.

    Raises StorageError in a process forked after its parent used a store, and where the environment lacks something.
    """
    check_not_forked()
    key = (place.scheme, place.root, place.query, *_environment())
    store = _PROCESS.stores.get(key)
    if store is None:
        with _PROCESS.lock:
            store = _PROCESS.stores.get(key) or _made(place)
            _PROCESS.stores[key] = store
    return store


def check_not_forked() -> None:
    """Raises StorageError in a process forked after its parent used a store."""
    if _PROCESS.is_broken_fork:
        raise StorageError(
            "this process was forked after a remote store was used, and its connections do not survive that: start "
            'worker processes with multiprocessing_context="spawn" or "forkserver"'
        )


def _made(place: Place) -> Store:
    # Imported here: who reads local files only need not load obstore or fsspec.
    if place.scheme in OBJECT_SCHEMES and not (place.scheme == "gs" and os.environ.get("STORAGE_EMULATOR_HOST")):
        from headrace.storage.object_store import ObjectStore

        return ObjectStore(place)
    from headrace.storage.filesystems import FsspecStore

    return FsspecStore(place)


def _environment() -> Iterator[tuple[str, str]]:
    # Credentials may change while the process lives; a client made with the old ones must not be used then.
    return ((name, value) for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES))


def _after_fork() -> None:
    global _PROCESS
    broken = _PROCESS.is_broken_fork or bool(_PROCESS.stores)
    _PROCESS = _Process()  # another thread of the parent may have held the lock
    _PROCESS.is_broken_fork = broken


os.register_at_fork(after_in_child=_after_fork)
