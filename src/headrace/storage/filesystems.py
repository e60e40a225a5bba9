"""Every other kind of store, through fsspec: Hugging Face, HDFS, SFTP, FTP and what else has a package for it.

A file system that is not asynchronous need not be safe to use from several threads, so each thread that makes calls has
one of its own; `calls` keeps those threads. Where the file system can rename, a file is written beside its place and
renamed, so that no reader sees half of it.
"""

from __future__ import annotations

import importlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from headrace.errors import StorageError
from headrace.storage.calls import limited
from headrace.storage.causes import foreign_failure, scrubbed
from headrace.storage.place import Place
from headrace.storage.store import Data, Entry, Failure, Missing, Range, Refused, Store, Trouble, Version

T = TypeVar("T")
FileSystem = Any
"""One of fsspec's file systems."""

GCS_EMULATOR = "STORAGE_EMULATOR_HOST"
_SECURE_SHELL = ("sftp", "ssh")


class FsspecStore(Store):
    """What one URL scheme and host name, as fsspec sees it."""

    def __init__(self, place: Place) -> None:
        """Raises StorageError if the scheme's package is not installed."""
        self._scheme = place.scheme
        self._class = _filesystem_class(place.scheme)
        self._options = _options(self._class, place)
        self._own = threading.local()
        self._lock = threading.Lock()
        self._shared: FileSystem | None = None

    def size(self, place: Place, limit: float) -> int:
        """As `Store.size`."""
        return self._do(limit, lambda fs: _file_size(fs, self._path(place)))

    def get(self, place: Place, limit: float) -> Version:
        """As `Store.get`."""
        path = self._path(place)
        size, data = self._do(limit, lambda fs: (_file_size(fs, path), fs.cat_file(path)))
        if len(data) != size:
            raise Trouble(f"{len(data):,} bytes came of {size:,}")
        return Version(bytes(data), None)

    def get_range(self, place: Place, start: int, end: int, limit: float) -> Range:
        """As `Store.get_range`; in one piece, since few file systems give a range as it arrives."""
        path = self._path(place)
        data = self._do(limit, lambda fs: fs.cat_file(path, start=start, end=end))
        return Range(None, iter([data]))

    def put(self, place: Place, data: Data, limit: float) -> None:
        """As `Store.put`."""
        self._do(limit, lambda fs: _write(fs, self._path(place), lambda path: fs.pipe_file(path, bytes(data))))

    def create(self, place: Place, data: Data, limit: float) -> bool:
        """As `Store.create`, as exclusive as the file system makes it: many ask first and write then."""

        def create(fs: FileSystem) -> bool:
            path = self._path(place)
            if fs.exists(path):
                return False
            _make_folders(fs, path)
            try:
                fs.pipe_file(path, bytes(data), mode="create")
            except FileExistsError:
                return False
            return True

        return self._do(limit, create)

    def replace(self, place: Place, data: Data, mark: Any, limit: float) -> bool:
        """Always refused: fsspec has no writes with a condition."""
        raise Refused(f"{self._scheme}: stores have no writes with a condition")

    def heeds_conditions(self, probe: Place, limit: float) -> bool:
        """As `Store.heeds_conditions`: never."""
        return False

    def upload(self, path: Path, place: Place, limit: float) -> None:
        """As `Store.upload`; the limit holds for all of it, at a megabyte a second at least."""
        num_bytes = path.stat().st_size
        limit += num_bytes / 1e6
        self._do(limit, lambda fs: _write(fs, self._path(place), lambda target: fs.put_file(str(path), target)))
        if (stored := self.size(place, limit)) != num_bytes:
            raise Trouble(f"the store has {stored:,} bytes of {num_bytes:,}")

    def entries(self, place: Place, limit: float) -> list[Entry]:
        """As `Store.entries`."""
        path = self._path(place)

        def entries(fs: FileSystem) -> list[Entry]:
            fs.invalidate_cache()
            return [_entry(info, _last(info["name"])) for info in fs.ls(path, detail=True) if not _is(info, path)]

        nothing: list[Entry] = []
        return self._unless_missing(limit, entries, nothing)

    def walk(self, place: Place, after: str, limit: float) -> Iterator[list[Entry]]:
        """As `Store.walk`, in one page."""
        path = self._path(place)

        def walk(fs: FileSystem) -> list[Entry]:
            fs.invalidate_cache()
            found = fs.find(path, detail=True).values()
            return [_entry(info, _below(info["name"], path)) for info in found if not _is(info, path)]

        nothing: list[Entry] = []
        entries = sorted(self._unless_missing(limit, walk, nothing))
        yield [entry for entry in entries if entry.name > after]

    def is_file(self, place: Place, limit: float) -> bool:
        """As `Store.is_file`."""
        return self._kind(place, limit) == "file"

    def is_folder(self, place: Place, limit: float) -> bool:
        """As `Store.is_folder`."""
        return self._kind(place, limit) == "directory"

    def remove(self, place: Place, limit: float) -> None:
        """As `Store.remove`."""
        if self.is_file(place, limit):  # what it raises for one that is not there, each file system has its own way
            self._unless_missing(limit, lambda fs: fs.rm_file(self._path(place)), None)

    def _kind(self, place: Place, limit: float) -> str:
        def kind(fs: FileSystem) -> str:
            fs.invalidate_cache()
            return str(fs.info(self._path(place))["type"])

        return self._unless_missing(limit, kind, "")

    def _unless_missing(self, limit: float, function: Callable[[FileSystem], T], otherwise: T) -> T:
        try:
            return self._do(limit, function)
        except Missing:
            return otherwise

    def _do(self, limit: float, function: Callable[[FileSystem], T]) -> T:
        failure: Failure
        try:
            return limited(limit, lambda: function(self._filesystem()))
        except TimeoutError:
            failure = Trouble(f"no answer within {limit:.3g} s")
        except Exception as err:
            failure = foreign_failure(err, self._scheme)
        raise failure  # out here, so that the library's own error is not its context

    def _filesystem(self) -> FileSystem:
        if not self._class.async_impl:
            if not hasattr(self._own, "fs"):
                self._own.fs = self._class(**self._options, skip_instance_cache=True)
            return self._own.fs
        with self._lock:
            if self._shared is None:
                self._shared = self._class(**self._options, skip_instance_cache=True)
            return self._shared

    def _path(self, place: Place) -> str:
        return str(self._class._strip_protocol(place.text)).rstrip("/")


def _filesystem_class(scheme: str) -> Any:
    if scheme == "gs":
        # With its newer parts, which speak another protocol, gcsfs reaches no emulator. It reads this when imported,
        # which another library may have done already.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec

    try:
        if scheme == "gs":
            return importlib.import_module("gcsfs").core.GCSFileSystem
        return fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as err:
        words = scrubbed(str(err))
    raise StorageError(f"{scheme}: URLs need a package that is not installed: {words}")


def _options(kind: Any, place: Place) -> dict[str, Any]:
    options = dict(kind._get_kwargs_from_urls(place.text))
    if place.scheme == "gs":
        options |= {"token": "anon", "endpoint_url": os.environ[GCS_EMULATOR]}
    if place.scheme in _SECURE_SHELL:
        from headrace.storage.known_hosts import KnownHosts

        options |= {"host_key_policy": KnownHosts()}
    return options


def _file_size(fs: FileSystem, path: str) -> int:
    info = fs.info(path)
    if info["type"] == "directory":
        raise Missing("there is a folder of this name")
    if info.get("size") is None:
        raise Refused("the store does not say how long the file is")
    return int(info["size"])


def _write(fs: FileSystem, path: str, write: Callable[[str], object]) -> None:
    _make_folders(fs, path)
    if not _renames(fs):
        write(path)
        return
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        write(temporary)
        _rename(fs, temporary, path)
    except BaseException:
        if fs.exists(temporary):
            fs.rm_file(temporary)
        raise


def _rename(fs: FileSystem, temporary: str, path: str) -> None:
    # HDFS and some FTP servers do not rename onto a file that is there, and some say nothing when they do not.
    try:
        fs.mv(temporary, path)
    except Exception:
        if not (fs.exists(temporary) and fs.exists(path)):
            raise
    if fs.exists(temporary):
        fs.rm_file(path)
        fs.mv(temporary, path)
        if fs.exists(temporary):
            raise OSError("the file system does not rename")


def _renames(fs: FileSystem) -> bool:
    from fsspec import AbstractFileSystem

    return not fs.async_impl and type(fs).mv is not AbstractFileSystem.mv


def _make_folders(fs: FileSystem, path: str) -> None:
    parent = path.rpartition("/")[0]
    if parent.strip("/") and _renames(fs):
        fs.makedirs(parent, exist_ok=True)


def _entry(info: dict[str, Any], name: str) -> Entry:
    is_folder = info["type"] == "directory"
    return Entry(name, 0 if is_folder else int(info.get("size") or 0), is_folder)


def _is(info: dict[str, Any], path: str) -> bool:
    return str(info["name"]).strip("/") == path.strip("/")


def _below(name: str, path: str) -> str:
    return name.strip("/")[len(path.strip("/")) :].strip("/")


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]
