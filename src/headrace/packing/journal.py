"""How far a pack has come, one JSON line a finished shard.

The first line is the request. Each further line has a shard's row, the place in the source behind it, and what became
of the samples on the way. A line that a crash cut off is as good as not written, and the shard that it would have named
is made again.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from headrace.errors import ManifestError
from headrace.formats import Field, Shard
from headrace.formats.checking import Checked
from headrace.formats.fields import fields_from_json
from headrace.packing.skipped import Skipped, line_of
from headrace.storage import Place, exists, read_bytes, storage_refusals, write_all, write_bytes

_SAVED_SHARE = 64


@dataclass(frozen=True, slots=True)
class Milestone:
    """One finished shard, and where a pack stands behind it."""

    item: int
    """Records of the source, in the final order, that are wholly in finished shards or dropped."""
    within: int
    """Of the next record's samples, how many are in finished shards: a transform may give several."""
    shard: Shard
    fields: Mapping[str, Field]
    """Of all samples so far."""
    skipped: tuple[Skipped, ...]
    """Samples that were passed over since the shard before."""
    dropped: Mapping[str, int]
    """Samples that steps dropped since the shard before, by the step's name."""

    def to_line(self) -> bytes:
        """The journal's line."""
        return line_of(
            {
                "item": self.item,
                "within": self.within,
                "shard": self.shard.to_json(),
                "fields": {name: field.to_json() for name, field in self.fields.items()},
                "skipped": [skipped.to_json() for skipped in self.skipped],
                "dropped": dict(self.dropped),
            }
        )

    @classmethod
    def from_json(cls, value: Checked) -> Milestone:
        """The milestone of a JSON object, checked."""
        return cls(
            value["item"].integer(),
            value["within"].integer(),
            Shard.from_json(value["shard"]),
            fields_from_json(value["fields"]),
            tuple(Skipped(item["key"].text(), item["reason"].text()) for item in value["skipped"].elements()),
            {name: count.integer() for name, count in value["dropped"].items()},
        )


class Journal(ABC):
    """The lines of a pack, of which this process is the only writer."""

    request: str | None
    """None if the journal is new or torn at its start."""

    @abstractmethod
    def start(self, request: str) -> None:
        """Forget all lines and write the request."""

    @abstractmethod
    def go_back(self, is_there: Callable[[Shard], bool]) -> None:
        """Drop the lines from the first one on whose shard is not there, and what a crash left of a torn line."""

    @abstractmethod
    def milestones(self) -> Iterator[Milestone]:
        """What the lines say, one by one."""

    @abstractmethod
    def add(self, milestone: Milestone) -> None:
        """Write a line."""


class FileJournal(Journal):
    """The lines of an open file on the local disk. What is added is on the disk for good."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd, self._path = fd, path
        with storage_refusals("read", path), open(path, "rb") as file:
            self.request = read_request(file.readline())

    def start(self, request: str) -> None:
        self.request = request
        with storage_refusals("write", self._path):
            os.ftruncate(self._fd, 0)
        self._append(line_of({"request": request}))

    def go_back(self, is_there: Callable[[Shard], bool]) -> None:
        with storage_refusals("read", self._path), open(self._path, "rb") as file:
            end = len(file.readline())
            end += _length_of_good(iter(file.readline, b""), is_there)
        with storage_refusals("write", self._path):
            os.ftruncate(self._fd, end)

    def milestones(self) -> Iterator[Milestone]:
        with storage_refusals("read", self._path), open(self._path, "rb") as file:
            file.readline()
            yield from (milestone for milestone, _ in _milestones(iter(file.readline, b"")))

    def add(self, milestone: Milestone) -> None:
        self._append(milestone.to_line())

    def _append(self, line: bytes) -> None:
        with storage_refusals("write", self._path):
            os.lseek(self._fd, 0, os.SEEK_END)
            write_all(self._fd, line)
            os.fsync(self._fd)


class StoredJournal(Journal):
    """The lines of a file in a store, which can only be written as a whole.

    So a line is not always written at once: up to one in 64 shards may be made again after a crash, and all that is
    ever written is 64 times the last content at most.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._content = bytearray(read_bytes(place) if exists(place) else b"")
        self._num_lines = self._num_new = 0
        self.request = read_request(self._lines()[0]) if self._content else None

    def start(self, request: str) -> None:
        self.request = request
        self._content = bytearray(line_of({"request": request}))
        write_bytes(self._place, self._content)

    def go_back(self, is_there: Callable[[Shard], bool]) -> None:
        first, *lines = self._lines()
        del self._content[len(first) + _length_of_good(iter(lines), is_there) :]
        self._num_lines = len(self._lines()) - 1

    def milestones(self) -> Iterator[Milestone]:
        yield from (milestone for milestone, _ in _milestones(iter(self._lines()[1:])))

    def add(self, milestone: Milestone) -> None:
        self._content += milestone.to_line()
        self._num_lines += 1
        self._num_new += 1
        if self._num_new * _SAVED_SHARE >= self._num_lines:
            write_bytes(self._place, self._content)
            self._num_new = 0

    def _lines(self) -> list[bytes]:
        return bytes(self._content).splitlines(keepends=True)


def read_request(line: bytes) -> str | None:
    """The request in a journal's first line; None if it is torn."""
    value = _parsed(line)
    try:
        return None if value is None else value["request"].text()
    except ManifestError:
        return None


def _milestones(lines: Iterator[bytes]) -> Iterator[tuple[Milestone, int]]:
    """Each milestone and its line's length in bytes, up to the first line that is torn.

    What follows a broken line cannot be relied on; its shards are made again.
    """
    for line in lines:
        value = _parsed(line)
        try:
            milestone = None if value is None else Milestone.from_json(value)
        except ManifestError:
            return
        if milestone is None:
            return
        yield milestone, len(line)


def _length_of_good(lines: Iterator[bytes], is_there: Callable[[Shard], bool]) -> int:
    good = 0
    for milestone, length in _milestones(lines):
        if not is_there(milestone.shard):
            break
        good += length
    return good


def _parsed(line: bytes) -> Checked | None:
    try:
        return Checked(orjson.loads(line), "the journal") if line.endswith(b"\n") else None
    except orjson.JSONDecodeError:
        return None
