"""Object stores and web servers, through obstore.

Reading copies once, from obstore's own buffer into the caller's. A range is read as a stream of pieces, so that what
has arrived before a fault is kept and the next attempt asks for the rest only. obstore's own retries are off, except
for uploads in parts: the retries around a `Store` know the deadline, and the place in the file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from headrace.storage.calls import interruptible
from headrace.storage.causes import object_failure, scrubbed
from headrace.storage.clients import Client, Use, maker
from headrace.storage.place import WEB_SCHEMES, Place
from headrace.storage.store import Data, Denied, Entry, Missing, Range, Refused, Store, Trouble, Version

P = ParamSpec("P")
T = TypeVar("T")

_PIECE_BYTES = 1 << 20
_PART_BYTES = 8 << 20
_MOST_PARTS = 9_000  # S3 takes 10,000
_PARTS_AT_ONCE = 4
_PAGE = 1_000
_PANIC = "PanicException"  # of pyo3, which exports it nowhere

_NO_LISTING = (
    "this web server has no listing of folders; give the URL of a file or of a dataset with its manifest, "
    "or serve the folder by WebDAV or S3"
)


class ObjectStore(Store):
    """A bucket, a container, a web server, or this process's memory."""

    def __init__(self, place: Place) -> None:
        """The store that the place is in. Raises StorageError where the environment does not say how to reach it."""
        self._scheme = place.scheme
        self._make = maker(place)
        self._clients: dict[tuple[float, Use], Client] = {}
        self._lock = threading.Lock()
        self._has_worked = False

    def size(self, place: Place, limit: float) -> int:
        """As `Store.size`. A URL that is signed for reading refuses HEAD, so GET's own headers are asked then."""
        return int(self._meta(place, limit)["size"])

    def version(self, place: Place, limit: float) -> tuple[int, str | None]:
        """As `Store.version`."""
        meta = self._meta(place, limit)
        return int(meta["size"]), _version(meta)

    def get(self, place: Place, limit: float) -> Version:
        """As `Store.get`."""
        result = self._call(obstore.get, self._client(limit), self._key(place))
        meta = result.meta
        data = bytes(self._call(result.bytes))
        if len(data) != meta["size"]:
            raise Trouble(f"{len(data):,} bytes came of {meta['size']:,}")
        return Version(data, {name: meta[name] for name in ("e_tag", "version") if meta.get(name)} or None)

    def get_range(self, place: Place, start: int, end: int, limit: float) -> Range:
        """As `Store.get_range`."""
        options: obstore.GetOptions = {"range": (start, end)}
        result = self._call(obstore.get, self._client(limit), self._key(place), options=options)
        if result.range[0] != start:
            raise Trouble(f"the store sent bytes from {result.range[0]:,} on instead of {start:,}")
        return Range(int(result.meta["size"]), self._chunks(result.stream(_PIECE_BYTES)), _version(result.meta))

    def put(self, place: Place, data: Data, limit: float) -> None:
        """As `Store.put`."""
        if len(data) > 2 * _PART_BYTES:
            self._put_parts(place, bytes(data), len(data), limit)
        else:
            client = self._client(limit, Use.WRITE)
            self._call(obstore.put, client, self._key(place), bytes(data), use_multipart=False)

    def create(self, place: Place, data: Data, limit: float) -> bool:
        """As `Store.create`. A few S3-compatible stores ignore the condition; asking first makes that rarer."""
        if self.is_file(place, limit):
            return False
        if self._scheme in WEB_SCHEMES:  # WebDAV knows no condition: it is only looked first
            self.put(place, data, limit)
            return True
        return self._put_if(place, data, "create", limit)

    def replace(self, place: Place, data: Data, mark: Any, limit: float) -> bool:
        """As `Store.replace`."""
        if mark is None:
            raise Refused("the store gives its files no versions to compare")
        return self._put_if(place, data, mark, limit)

    def heeds_conditions(self, probe: Place, limit: float) -> bool:
        """As `Store.heeds_conditions`. A web server has none; a few S3-compatible stores take them and ignore them."""
        if self._scheme in WEB_SCHEMES:
            return False
        self._put_if(probe, b"1", "create", limit)
        is_heeded = not self._put_if(probe, b"2", "create", limit)
        self.remove(probe, limit)
        return is_heeded

    def upload(self, path: Path, place: Place, limit: float) -> None:
        """As `Store.upload`."""
        num_bytes = path.stat().st_size
        self._put_parts(place, path, num_bytes, limit)
        if (stored := self.size(place, limit)) != num_bytes:
            raise Trouble(f"the store has {stored:,} bytes of {num_bytes:,}")

    def entries(self, place: Place, limit: float) -> list[Entry]:
        """As `Store.entries`."""
        key = self._key(place)
        found = self._listed(obstore.list_with_delimiter, self._client(limit), key or None)
        folders = [Entry(_last(prefix), 0, True) for prefix in found["common_prefixes"]]
        # Some tools store a folder as an empty object of its name.
        files = [Entry(_last(meta["path"]), meta["size"], False) for meta in found["objects"] if meta["path"] != key]
        return folders + files

    def walk(self, place: Place, after: str, limit: float) -> Iterator[list[Entry]]:
        """As `Store.walk`. WebDAV has no order, so all of it is fetched and sorted first."""
        pages = self._pages(place, after, limit)
        return iter([sorted(entry for page in pages for entry in page)]) if self._scheme in WEB_SCHEMES else pages

    def _pages(self, place: Place, after: str, limit: float) -> Iterator[list[Entry]]:
        key = self._key(place)
        cut = len(key) + 1 if key else 0
        offset = f"{key}/{after}".lstrip("/") if after else None
        stream = self._listed(obstore.list, self._client(limit), key or None, offset=offset, chunk_size=_PAGE)
        while (page := self._listed(next, stream, None)) is not None:
            entries = [Entry(meta["path"][cut:], meta["size"], False) for meta in page if meta["path"] != key]
            # Not every store heeds the offset.
            yield [entry for entry in entries if entry.name > after]

    def is_file(self, place: Place, limit: float) -> bool:
        """As `Store.is_file`."""
        try:
            self.size(place, limit)
        except Missing:
            return False
        return True

    def is_folder(self, place: Place, limit: float) -> bool:
        """As `Store.is_folder`; False for a web server without listings."""
        try:
            return any(self.walk(place, "", limit))
        except Refused:
            if self._scheme in WEB_SCHEMES:
                return False
            raise

    def remove(self, place: Place, limit: float) -> None:
        """As `Store.remove`."""
        try:
            self._call(obstore.delete, self._client(limit), self._key(place))
        except Missing:
            return

    def _meta(self, place: Place, limit: float) -> obstore.ObjectMeta:
        client, key = self._client(limit), self._key(place)
        try:
            return self._call(obstore.head, client, key)
        except (Denied, Refused):
            if self._scheme not in WEB_SCHEMES:
                raise
        return self._call(obstore.get, client, key).meta

    def _put_if(self, place: Place, data: Data, mode: Any, limit: float) -> bool:
        client, key, content = self._client(limit, Use.WRITE), self._key(place), bytes(data)

        def put() -> bool:
            try:
                obstore.put(client, key, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            except FileNotFoundError:  # to be replaced, but it is gone
                if mode == "create":
                    raise
                return False
            return True

        return self._call(put)

    def _put_parts(self, place: Place, source: bytes | Path, num_bytes: int, limit: float) -> None:
        client = self._client(limit, Use.UPLOAD)
        if self._scheme in WEB_SCHEMES:  # WebDAV knows no parts
            self._call(obstore.put, client, self._key(place), source, use_multipart=False)
            return
        part = max(_PART_BYTES, -(-num_bytes // _MOST_PARTS))
        self._call(obstore.put, client, self._key(place), source, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)

    def _chunks(self, stream: Any) -> Iterator[Data]:
        while (chunk := self._call(next, stream, None)) is not None:
            yield memoryview(chunk)

    def _listed(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return self._call(function, *args, **kwargs)
        except (Denied, Refused, Missing) as failure:
            words = _NO_LISTING if self._scheme in WEB_SCHEMES else str(failure)
            kind = Refused if self._scheme in WEB_SCHEMES or isinstance(failure, Missing) else type(failure)
        raise kind(words or "there is no such bucket")

    def _key(self, place: Place) -> str:
        return unquote(place.key) if self._scheme in WEB_SCHEMES else place.key

    def _client(self, limit: float, use: Use = Use.READ) -> Client:
        with self._lock:
            client = self._clients.get((limit, use))
            if client is None:
                client = self._clients[limit, use] = self._understood(self._make, limit, use)
        return client

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        result = self._understood(lambda: interruptible(function, *args, **kwargs))
        self._has_worked = True
        return result

    def _understood(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (BaseError, OSError, ValueError, NotImplementedError) as err:
            failure = object_failure(err, self._scheme, has_worked=self._has_worked)
        except BaseException as err:
            if type(err).__name__ != _PANIC:
                raise
            failure = Refused(f"obstore broke down: {scrubbed(str(err))}")
        raise failure  # out here, so that the library's own error is not its context


def _version(meta: obstore.ObjectMeta) -> str | None:
    """Which content it is; a weak tag says only that it means the same, and some tags are mere numbers."""
    tag = meta.get("e_tag")
    return None if not tag or tag.startswith("W/") else f"{tag} {meta['last_modified'].isoformat()}"


def _last(path: str) -> str:
    return path.rpartition("/")[2]
