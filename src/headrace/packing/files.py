"""A table whose rows name files: each file's bytes come in the place of its name.

A path is relative to the table's folder, or absolute. A table may so name any file that this user can read, also by
`..`: pack only tables that you trust with that. A table in a store names files below its own folder only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from headrace.errors import OptionError, SourceError
from headrace.formats.tar.names import split_name
from headrace.packing.folder import read_file
from headrace.packing.source import BAD_SAMPLE, Bad, Loader, Sample, Source
from headrace.packing.spool import Record
from headrace.storage import Place, quoted

_SIZE = struct.Struct("<q")
_UNKNOWN = -1
_REMOTE_BYTES = 1 << 20  # what a file in a store is taken for until it is read


class FilesSource(Source):
    """The rows of a table, with the files that one column names."""

    def __init__(self, rows: Source, column: str, folder: Place) -> None:
        """`folder` is what paths are relative to."""
        self.title, self.classes, self.images = rows.title, rows.classes, rows.images - {column}
        self.class_field, self.num_records = rows.class_field, rows.num_records
        self.loader = self._files = FilesLoader(rows.loader, column, folder)
        self._rows, self._digest = rows, xxhash.xxh3_128()

    @property
    def identity(self) -> str:
        return f"{self._rows.identity} files {self._digest.hexdigest()}"

    def records(self) -> Iterator[Record | Bad]:
        for record in self._rows.records():
            yield record if isinstance(record, Bad) else self._with_size(record)

    def close(self) -> None:
        self._rows.close()

    def _with_size(self, record: Record) -> Record | Bad:
        try:
            row = self._files.rows.load(record.key, record.payload)
            size, mtime_ns = self._files.look(self._files.place_of(row))
        except BAD_SAMPLE as err:
            return Bad(record.key, err)
        self._digest.update(f"{record.key}\n{size} {mtime_ns}\n".encode())
        num_bytes = record.size + (_REMOTE_BYTES if size == _UNKNOWN else size)
        return Record(record.key, _SIZE.pack(size) + record.payload, num_bytes)


@dataclass(frozen=True)
class FilesLoader(Loader):
    """Reads a row, then the file that it names."""

    rows: Loader
    column: str
    folder: Place

    @property
    def waits(self) -> bool:
        return not self.folder.is_local

    def load(self, key: str, payload: bytes) -> Sample:
        sample = self.rows.load(key, payload[_SIZE.size :])
        place = self.place_of(sample)
        field = _field_of(place)
        sample = {name: value for name, value in sample.items() if name != self.column}
        if field in sample:
            raise SourceError(f"sample {quoted(key)}: the file {place} would be the field {field!r}, which is there")
        return {**sample, field: _read(place, _SIZE.unpack_from(payload)[0])}

    def origin(self, key: str, payload: bytes, field: str) -> str:
        place = self.place_of(self.rows.load(key, payload[_SIZE.size :]))
        return str(place) if field == _field_of(place) else self.rows.origin(key, payload[_SIZE.size :], field)

    def place_of(self, row: Sample) -> Place:
        """The file that a row names. Raises SourceError."""
        name = row.get(self.column)
        if isinstance(name, bytes | memoryview):
            name = bytes(name).decode("utf-8", "surrogateescape")
        if not isinstance(name, str) or not name or "\0" in name:
            raise SourceError(
                f"sample {quoted(row['__key__'])}: the column {self.column!r} must name a file, got {_shown(name)}; "
                f"columns are {', '.join(sorted(name for name in row if name != '__key__'))}"
            )
        if self.folder.is_local:
            return Place(os.path.join(self.folder.path, name), "file")
        try:
            return self.folder / name
        except OptionError as err:
            raise SourceError(f"sample {quoted(row['__key__'])}: {err}") from err

    def look(self, place: Place) -> tuple[int, int]:
        """Size and modification time of a file, as far as they are known without asking a store for each."""
        _field_of(place)
        if not place.is_local:
            return _UNKNOWN, 0
        try:
            status = place.path.stat()
        except OSError as err:
            raise SourceError(f"the table names {place}, which cannot be read: {err.strerror}") from err
        return status.st_size, status.st_mtime_ns


def _read(place: Place, size: int) -> bytes:
    return read_file(str(place.path) if place.is_local else place, None if size == _UNKNOWN else size)


def _field_of(place: Place) -> str:
    named = split_name(place.name)
    if named is None or not named[1]:
        raise SourceError(f"the table names {place}, whose name has no extension to name a field by: rename it")
    return named[1]


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) < 60 else shown[:60] + "..."
