"""How far a pack has come, one JSON line a finished shard.

The first line is the request. Each further line has a shard's row, the place in the source behind it, and what became
of the samples on the way. A line that a crash cut off is as good as not written, and the shard that it would have named
is made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from headrace.errors import ManifestError
from headrace.formats import Field, Shard
from headrace.formats.checking import Checked
from headrace.formats.fields import fields_from_json
from headrace.packing.skipped import Skipped, line_of
from headrace.storage import storage_refusals, write_all


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


def read_request(line: bytes) -> str | None:
    """The request in a journal's first line; None if it is torn."""
    value = _parsed(line)
    try:
        return None if value is None else value["request"].text()
    except ManifestError:
        return None


def read_milestones(lines: Iterator[bytes]) -> Iterator[tuple[Milestone, int]]:
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


class FileJournal:
    """The lines of an open file on the local disk, of which this process is the only writer."""

    def __init__(self, fd: int, path: Path) -> None:
        """Reads the request; it is None if the file is new or torn at its start."""
        self._fd, self._path = fd, path
        with storage_refusals("read", path), self._opened() as file:
            line = file.readline()
            self.request = read_request(line)
            self._end = len(line)

    def start(self, request: str) -> None:
        """Empty the file and write the request."""
        self.request = request
        with storage_refusals("write", self._path):
            os.ftruncate(self._fd, 0)
        self._append(line_of({"request": request}))

    def go_back(self, is_there: Callable[[Shard], bool]) -> None:
        """Drop the lines from the first one on whose shard is not there, and what a crash left of a torn line."""
        with storage_refusals("read", self._path), self._opened() as file:
            self._end = len(file.readline())
            for milestone, length in read_milestones(iter(file.readline, b"")):
                if not is_there(milestone.shard):
                    break
                self._end += length
        with storage_refusals("write", self._path):
            os.ftruncate(self._fd, self._end)

    def milestones(self) -> Iterator[Milestone]:
        """What the lines say, one by one."""
        with storage_refusals("read", self._path), self._opened() as file:
            file.readline()
            for milestone, _ in read_milestones(iter(file.readline, b"")):
                yield milestone

    def add(self, milestone: Milestone) -> None:
        """Write a line. Returns when it is on the disk."""
        self._append(milestone.to_line())

    def _append(self, line: bytes) -> None:
        with storage_refusals("write", self._path):
            os.lseek(self._fd, 0, os.SEEK_END)
            write_all(self._fd, line)
            os.fsync(self._fd)

    def _opened(self) -> Any:
        return open(self._path, "rb")


def _parsed(line: bytes) -> Checked | None:
    try:
        return Checked(orjson.loads(line), "the journal") if line.endswith(b"\n") else None
    except orjson.JSONDecodeError:
        return None
