"""A folder of files as a source: files of one stem are a sample, and folders may be classes.

The folder is walked once, in whatever order the disk gives; a sort brings the files of a sample together. What is no
part of any sample (hidden files, files without an extension, links to folders) is passed over and said; what looks like
a sample but is broken is an error, or skipped on request.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import orjson
import xxhash

from headrace.dataset.walk import Unusable, Walk
from headrace.errors import DamagedError, SourceError, StorageError
from headrace.packing.sorting import sorted_strings
from headrace.packing.source import Bad, Loader, Sample, Source
from headrace.packing.spool import Record
from headrace.packing.store_walk import StoreWalk
from headrace.storage import Place, open_regular, quoted, read_bytes, storage_refusals

_log = logging.getLogger("headrace.packing")


class _File(NamedTuple):
    """A file of a sample, as the walk notes it."""

    key: str
    field: str
    path: str
    """Below the source folder."""
    size: int
    mtime_ns: int

    def to_bytes(self) -> bytes:
        # 0 sorts before all that a name may hold, so these sort as the tuples of their parts do.
        return f"{self.key}\0{self.field}\0{self.path}\0{self.size}\0{self.mtime_ns}".encode()

    @classmethod
    def parse(cls, data: bytes) -> _File:
        key, field, path, size, mtime_ns = data.split(b"\0")
        return cls(key.decode(), field.decode(), path.decode(), int(size), int(mtime_ns))


_BROKEN = ""  # instead of a field: no file's field is empty
_RESERVED_BYTES = 1 << 10  # for what Python needs around a sample's bytes


class FolderSource(Source):
    """The samples of a folder of files, sorted by key."""

    def __init__(self, folder: Place, scratch: Path) -> None:
        """Walks the folder, on the disk or in a store; `scratch` is where temporary files go.

        Raises SourceError if it is missing, empty or has class folders that cannot be told apart.
        """
        self.title = f"the folder {folder}"
        self._walk = Walk(folder.path) if folder.is_local else StoreWalk(folder)
        self._folder, self._digest = folder, xxhash.xxh3_128()
        self._notes = sorted_strings(self._noted(), scratch)
        self._first = next(self._notes, None)  # the walk is done when the first of its notes in order is there
        passed_over = self._walk.passed_over()
        if self._first is None:
            raise SourceError(f"{folder} holds nothing to pack: {passed_over or 'it is empty'}")
        self.classes = self._walk.classes()
        numbers = None if self.classes is None else {name: number for number, name in enumerate(self.classes)}
        self.loader = FolderLoader(folder, numbers)
        if self.classes is None and len(self._walk.folders) > 1 and (stray := self._walk.stray):
            _log.warning("no classes: %s lies outside the folders of %s", quoted(stray), folder)
        if passed_over:
            _log.warning("passed over in %s: %s", folder, passed_over)

    @property
    def identity(self) -> str:
        return f"folder {self._digest.hexdigest()} {self.classes}"

    def number_classes(self, classes: tuple[str, ...]) -> tuple[str, ...]:
        """Give the classes these numbers: those of a dataset that is appended to come first."""
        self.loader = FolderLoader(self._folder, {name: number for number, name in enumerate(classes)})
        return classes

    def records(self) -> Iterator[Record | Bad]:
        for _, files in groupby(self._files(), lambda file: file.key):
            yield from self._sample(list(files))

    def close(self) -> None:
        self._notes.close()

    def _noted(self) -> Iterator[bytes]:
        for found in self._walk.files():
            if isinstance(found, Unusable):
                yield _File(found.key, _BROKEN, str(found.error), 0, 0).to_bytes()
            else:
                yield _File(*found.named, found.path, found.size, found.mtime_ns).to_bytes()

    def _files(self) -> Iterator[_File]:
        assert self._first is not None
        yield _File.parse(self._first)
        yield from map(_File.parse, self._notes)

    def _sample(self, files: list[_File]) -> Iterator[Record | Bad]:
        yield from (Bad(file.key, SourceError(file.path)) for file in files if file.field == _BROKEN)
        files = [file for file in files if file.field != _BROKEN]
        if error := self._duplicate(files):
            yield Bad(files[0].key, error)
        elif files:
            for file in files:
                self._digest.update(f"{file.path}\n{file.size} {file.mtime_ns}\n".encode())
            payload = orjson.dumps([(file.field, file.path, file.size) for file in files])
            yield Record(files[0].key, payload, sum(file.size for file in files) + _RESERVED_BYTES)

    def _duplicate(self, files: Iterable[_File]) -> SourceError | None:
        for file, other in pairwise(files):
            if file.field == other.field:
                both = f"{self._folder / file.path} and {self._folder / other.path}"
                return SourceError(f"{both} are the same field {file.field!r} of one sample: rename one of them")
        return None


@dataclass(frozen=True)
class FolderLoader(Loader):
    """Reads the files of a sample."""

    folder: Place
    class_numbers: Mapping[str, int] | None

    @property
    def waits(self) -> bool:
        return not self.folder.is_local

    def load(self, key: str, payload: bytes) -> Sample:
        sample: Sample = {"__key__": key}
        for field, path, size in orjson.loads(payload):
            sample[field] = read_file(self._where(path), size)
        if self.class_numbers is not None:
            sample["cls"] = self.class_numbers[key.partition("/")[0]]
        return sample

    def origin(self, key: str, payload: bytes, field: str) -> str:
        paths = {name: path for name, path, _ in orjson.loads(payload)}
        return quoted(self._where(paths[field]))

    def _where(self, path: str) -> str | Place:
        return os.path.join(self._root, path) if self.folder.is_local else self.folder / path

    @cached_property
    def _root(self) -> str:
        return str(self.folder.path)


def read_file(where: str | Place, size: int | None) -> bytes:
    """The bytes of a file that had this size when it was found, if that is known; `where` is a path or a place.

    Raises SourceError.
    """
    if size == 0:
        raise SourceError(f"{quoted(where)} is empty (0 bytes)")
    changed = f"{quoted(where)} changed while packing"
    try:
        data = _read_local(where) if isinstance(where, str) else read_bytes(where)
    except DamagedError as err:
        raise SourceError(f"{changed}: it is gone" if size else f"{quoted(where)} is not there") from err
    except StorageError as err:
        raise SourceError(str(err)) from err
    if size is None:
        return data
    if len(data) != size:
        raise SourceError(f"{changed}: it had {size:,} bytes, now {len(data):,}")
    return data


def _read_local(path: str) -> bytes:
    # Without the checks and copies of `read_bytes`: this is done for every file of a source.
    with storage_refusals("read", path):
        try:
            fd = open_regular(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as err:
            raise DamagedError(path) from err
        try:
            return _read_all(fd)
        finally:
            os.close(fd)


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):  # at most 2 GiB come at once
        data += more
    return data
