"""An iterable as a source: it is gone through once, and its samples are kept in a file until they are written.

An iterable can be neither shuffled nor recognised again without seeing all of it. So its samples, made ready as they
will lie in shards, go into a nameless file on the target's disk, which vanishes with this process however that ends;
only their places and keys stay in memory.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import xxhash

from headrace.errors import SourceError
from headrace.formats import Encoded, Field
from headrace.packing.options import OnError
from headrace.packing.prepare import Preparer
from headrace.packing.source import BAD_SAMPLE, WAY_OUT, Skipped, Source, check_key
from headrace.packing.workers import ordered_map
from headrace.storage import storage_refusals, write_all
from headrace.telemetry import progress

_HEAD_BYTES = 8


class SpooledSource(Source):
    """The samples of an iterable of dicts, in its order; those without a `__key__` are numbered."""

    def __init__(
        self, samples: Iterable[Any], preparer: Preparer, folder: Path, workers: int, on_error: OnError
    ) -> None:
        """Goes through the iterable; the file lies on the disk of `folder`, or of the nearest folder above it."""
        while not folder.is_dir():
            folder = folder.parent
        self._folder = folder
        with storage_refusals("write a temporary file in", folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._places = array("q", [0])
        self._on_error = on_error
        self.keys: list[str] = []
        self.skipped: list[Skipped] = []
        self._digest = xxhash.xxh3_128()
        self._preparer = preparer
        try:
            self._fill(samples, workers)
        except BaseException:
            self._file.close()
            raise
        if not self.keys:
            found = "it is empty"
            if self.skipped:
                found = f"all of its {len(self.skipped):,} samples are broken (the first: {self.skipped[0].reason})"
            self._file.close()
            raise SourceError(f"the iterable gave nothing to pack: {found}")
        self.identity = f"iterable {self._digest.hexdigest()}"

    def encoded(self, i: int) -> list[Encoded]:
        start, length = self._places[i], self.size(i)
        with storage_refusals("read a temporary file in", self._folder):
            record = os.pread(self._file.fileno(), length, start)
        return list(_unpacked(memoryview(record)))

    def size(self, i: int) -> int:
        return self._places[i + 1] - self._places[i]

    def close(self) -> None:
        self._file.close()

    def _fill(self, samples: Iterable[Any], workers: int) -> None:
        results = ordered_map(self._prepare, enumerate(_copied(samples)), workers, lambda item: _rough_bytes(item[1]))
        with progress("reading", None, "samples") as advance:
            for key, result in results:
                advance()
                if isinstance(result, Skipped):
                    self.skipped.append(result)
                    continue
                record = b"".join(part for encoded in result for part in _packed(encoded))
                with storage_refusals("write a temporary file in", self._folder):
                    write_all(self._file.fileno(), record)
                self._digest.update(f"{key}\n{len(record)}\n".encode() + record)
                self.keys.append(key)
                self._places.append(self._places[-1] + len(record))

    def _prepare(self, item: tuple[int, Any]) -> tuple[str, list[Encoded] | Skipped]:
        number, sample = item
        where = f"sample number {number} of the iterable"
        if not isinstance(sample, dict):
            raise SourceError(f"{where} must be a dict of fields, got {type(sample).__name__}")
        key = f"{number:09d}"
        try:
            key = check_key(sample.get("__key__", key), where)
            return key, self._preparer({**sample, "__key__": key}, lambda name: f"{where}, field {name!r},")
        except BAD_SAMPLE as err:
            if self._on_error == "raise":
                raise type(err)(f"{err}{WAY_OUT}") from err
            return key, Skipped(key, str(err))


def _copied(samples: Iterable[Any]) -> Iterator[Any]:
    # Some iterables fill one dict again and again, and would do so while threads still read it.
    for sample in samples:
        yield dict(sample) if isinstance(sample, dict) else sample


def _packed(encoded: Encoded) -> Iterator[bytes]:
    fields = {name: field.to_json() for name, field in encoded.fields.items()}
    head = orjson.dumps([encoded.key, len(encoded.blob), fields, encoded.members, encoded.checksum])
    yield len(head).to_bytes(_HEAD_BYTES, "little")
    yield head
    yield encoded.blob


def _unpacked(record: memoryview) -> Iterator[Encoded]:
    at = 0
    while at < len(record):
        start = at + _HEAD_BYTES
        end = start + int.from_bytes(record[at:start], "little")
        key, length, fields, members, checksum = orjson.loads(record[start:end])
        at = end + length
        yield Encoded(
            key,
            bytes(record[end:at]),
            {name: _field(value) for name, value in fields.items()},
            tuple((name, offset, size) for name, offset, size in members),
            checksum,
        )


def _field(value: dict[str, Any]) -> Field:
    size = value.get("image_size")
    return Field(value["type"], value.get("dtype"), None, (size[0], size[1]) if size else None)


def _rough_bytes(sample: Any) -> int:
    values = sample.values() if isinstance(sample, dict) else ()
    return sum(
        getattr(value, "nbytes", 0) or (len(value) if isinstance(value, bytes | str) else 64) for value in values
    )
