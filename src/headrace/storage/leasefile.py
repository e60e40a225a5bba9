"""A small file that is made and replaced on a condition, in whatever way its place can do that."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeVar

from headrace.errors import DamagedError
from headrace.storage import local_store
from headrace.storage.operations import put_if_absent, read_bytes, remove
from headrace.storage.place import Place
from headrace.storage.retrying import ReadOptions, persist
from headrace.storage.store import Missing, Store, Trouble, Version
from headrace.storage.stores import store_for

T = TypeVar("T")

SETTLE_SEC = 2.0
"""How long to wait, where a store has no conditions, for what another process wrote at the same moment."""


class LeaseFile:
    """One file. Every method raises StorageError where the store refuses."""

    def __init__(self, place: Place, options: ReadOptions | None) -> None:
        self.place, self._options = place, options
        self._is_exact: bool | None = True if place.is_local else None

    @property
    def is_exact(self) -> bool:
        """Whether the store keeps the conditions, which is found out on another file at the first call."""
        if self._is_exact is None:
            probe = self.place.parent / f"{self.place.name}.{secrets.token_hex(4)}.probe"
            self._is_exact = self._persist("write", lambda store, limit: store.heeds_conditions(probe, limit))
        return self._is_exact

    def read(self) -> Version | None:
        """The file as it is now; None if there is none."""
        if not self.place.is_local:
            return self._persist("read", self._get)
        try:
            data = read_bytes(self.place)
        except DamagedError:
            return None
        return Version(data, data)

    def create(self, data: bytes) -> bool:
        """Make the file; False if there is one."""
        is_exact = self.is_exact
        return put_if_absent(self.place, data, options=self._options) and (is_exact or self._settles(data))

    def replace(self, data: bytes, found: Version, *, settle: bool = True) -> bool:
        """Write over the version that was read; False if the file is another by now.

        `settle` says whether to wait and look again, where the store has no conditions.
        """
        if self.place.is_local:
            return local_store.replace_if(self.place.path, data, found.data)
        if self.is_exact:
            return self._replace_exactly(data, found)
        self._persist("write", lambda store, limit: store.put(self.place, data, limit))
        return not settle or self._settles(data)

    def remove(self) -> None:
        """Remove the file; one that is not there is fine."""
        remove(self.place, options=self._options)

    def _replace_exactly(self, data: bytes, found: Version) -> bool:
        is_unsure = False

        def put(store: Store, limit: float) -> bool:
            nonlocal is_unsure
            try:
                return store.replace(self.place, data, found.mark, limit) or (
                    is_unsure and self._is(data, store, limit)
                )
            except Trouble:
                is_unsure = True  # it may have been written all the same
                raise

        return self._persist("write", put)

    def _settles(self, data: bytes) -> bool:
        time.sleep(SETTLE_SEC)
        found = self.read()
        return found is not None and found.data == data

    def _is(self, data: bytes, store: Store, limit: float) -> bool:
        found = self._get(store, limit)
        return found is not None and found.data == data

    def _get(self, store: Store, limit: float) -> Version | None:
        try:
            return store.get(self.place, limit)
        except Missing:
            return None

    def _persist(self, action: str, once: Callable[[Store, float], T]) -> T:
        store = store_for(self.place)
        return persist(action, self.place, self._options, lambda limit: once(store, limit))
