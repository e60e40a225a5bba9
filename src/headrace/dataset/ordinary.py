"""An ordinary dataset: shards without a manifest, each read through once to find its samples."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.dataset.classes import ClassNames
from headrace.errors import DamagedError, DatasetError
from headrace.formats import Field, Format, Found, Manifest, ScanOptions, Shard, Shards
from headrace.formats.index import StoredIndex
from headrace.storage import File, Place, file_version, open_file, quoted
from headrace.storage.cache import Cache, CacheOptions, cached


@dataclass(frozen=True, slots=True)
class Ordinary:
    """An ordinary dataset, before its shards are scanned."""

    folder: Place
    format: Format
    found: Found
    options: ScanOptions
    cache: CacheOptions | None = None
    """Where what is read over a network is kept, from the scan on."""
    held: Cache | None = None
    """That cache, open: what it has in memory goes with the last who holds it."""
    identities: dict[str, str] = field(default_factory=dict)
    """What the cache knows each scanned shard by."""

    def scan(self) -> Iterable[tuple[StoredIndex, Shard]]:
        """Each shard's index and row, read through once when asked for."""
        hints = self.found.hints or [{}] * len(self.found.files)
        for name, hint in zip(self.found.files, hints, strict=True):
            with self._open(name) as file:
                index, row = self._scan(file, {**hint, "file": name})
            yield index, replace(row, file=name)

    def _scan(self, file: File, hint: Mapping[str, Any]) -> tuple[StoredIndex, Shard]:
        try:
            return self.format.scan(file, hint, self.options)
        except DamagedError:
            if not file.is_remote:
                raise
        file.forget(0, file.size)  # the network may have garbled it: once more
        return self.format.scan(file, hint, self.options)

    def _open(self, name: str) -> File:
        place = self.folder / name
        if self.cache is None or self.held is None:
            return open_file(place)
        # Its checksum is not known yet. Without the store's own mark of the version, it is a file of this scan alone.
        size, version = file_version(place)
        identity = self.identities[name] = f"{place} {version or uuid.uuid4().hex}"
        return cached(lambda: open_file(place, size=size, version=version), self.cache, identity, size, place=place)


class Gathered:
    """What scanned shards are together, told of one after the other."""

    def __init__(self, ordinary: Ordinary) -> None:
        self._ordinary = ordinary
        self._fields: dict[str, Field] = {}
        self._without_samples: dict[str, Field] = {}
        self._classes = ClassNames()
        self._rows: list[Shard] = []

    def add(self, index: StoredIndex, row: Shard) -> None:
        """Take the next shard in. Raises DatasetError if it does not go together with those before it."""
        self._rows.append(row)
        self._classes.add(index.classes, row.file)
        if not row.samples:  # such a shard, as a table's header alone, says nothing of what others have
            self._without_samples |= index.fields
            return
        join = self._ordinary.format.join
        for name, found in index.fields.items():
            known = self._fields.get(name)
            if known is not None and (known.type, known.dtype) != (found.type, found.dtype) and join is None:
                found = _reconciled(name, known, found, row.file)
            self._fields[name] = found if known is None else join(known, found) if join else known.merged(found)

    def manifest(self) -> Manifest:
        """The manifest of all shards."""
        fields = self._fields | {k: v for k, v in self._without_samples.items() if k not in self._fields}
        class_field, classes = self._classes.of(fields)
        shards = Shards.of(self._rows)
        return Manifest(self._ordinary.format.name, fields, shards, classes, class_field=class_field)


def _reconciled(name: str, known: Field, field: Field, file: str) -> Field:
    """A field whose type differs from that in earlier shards, where both can be one."""
    if "null" in (known.type, field.type):
        return field
    raise DatasetError(
        f"shards of one dataset must have one type: in {quoted(file)} the field {name!r} is "
        f"{field.dtype or field.type}, in others {known.dtype or known.type}; put them into folders of their own"
    )
