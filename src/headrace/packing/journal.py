"""How far a pack has come, one JSON line a finished shard.

The first line is the request. Each further line has a shard's row and the place in the source behind it. Lines are
written in one piece and flushed to the disk; one that a crash cut off is as good as not written, and the shard that it
would have named is made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from headrace.errors import ManifestError
from headrace.formats import Field, Shard
from headrace.formats.checking import Checked
from headrace.formats.fields import fields_from_json
from headrace.packing.source import Skipped
from headrace.storage import storage_refusals, write_all


@dataclass(frozen=True, slots=True)
class Done:
    """What a pack had done when its last finished shard was."""

    item: int = 0
    """Samples of the source, in packing order, that are wholly in finished shards or dropped."""
    within: int = 0
    """Of the next sample's results, how many are in finished shards: a transform may give several."""
    shards: tuple[Shard, ...] = ()
    fields: Mapping[str, Field] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()


class Journal:
    """The lines of an open file, of which this process is the only writer."""

    def __init__(self, fd: int, path: Path) -> None:
        """Reads what is there. `request` is None, and `done` nothing, if the file is new or torn at its start."""
        self._fd, self._path = fd, path
        self.request: str | None = None
        self._steps: list[tuple[int, Done]] = []
        with storage_refusals("read", path):
            content = os.pread(fd, os.fstat(fd).st_size, 0)
        self._read(content)

    @property
    def done(self) -> Done:
        """The last finished shard's line."""
        return self._steps[-1][1] if self._steps else Done()

    def start(self, request: str) -> None:
        """Empty the file and write the request."""
        self.request, self._steps = request, []
        with storage_refusals("write", self._path):
            os.ftruncate(self._fd, 0)
        self._append({"request": request})

    def go_back(self, is_there: Callable[[Shard], bool]) -> None:
        """Drop the lines from the first one on whose shard is not there, and what a crash left of a torn line."""
        good = 1
        while good < len(self._steps) and is_there(self._steps[good][1].shards[-1]):
            good += 1
        del self._steps[good:]
        with storage_refusals("write", self._path):
            os.ftruncate(self._fd, self._steps[-1][0])

    def add(self, done: Done) -> None:
        """Write a line for the last shard of `done`. Returns when it is on the disk."""
        new = done.skipped[len(self.done.skipped) :]
        self._append(
            {
                "item": done.item,
                "within": done.within,
                "shard": done.shards[-1].to_json(),
                "fields": {name: field.to_json() for name, field in done.fields.items()},
                "skipped": [skipped.to_json() for skipped in new],
            }
        )
        self._steps.append((os.fstat(self._fd).st_size, done))

    def _append(self, line: dict[str, Any]) -> None:
        with storage_refusals("write", self._path):
            os.lseek(self._fd, 0, os.SEEK_END)
            write_all(self._fd, orjson.dumps(line) + b"\n")
            os.fsync(self._fd)
            if not self._steps:
                self._steps = [(os.fstat(self._fd).st_size, Done())]

    def _read(self, content: bytes) -> None:
        end = 0
        for line in content.splitlines(keepends=True):
            end += len(line)
            try:
                value = Checked(orjson.loads(line), str(self._path)) if line.endswith(b"\n") else None
                if value is None:
                    return
                if self.request is None:
                    self.request = value["request"].text()
                    self._steps.append((end, Done()))
                else:
                    self._steps.append((end, _after(self.done, value)))
            except (orjson.JSONDecodeError, ManifestError):
                return  # what follows a broken line cannot be relied on; its shards are made again


def _after(before: Done, line: Checked) -> Done:
    shard = Shard.from_json(line["shard"])
    skipped = tuple(Skipped(item["key"].text(), item["reason"].text()) for item in line["skipped"].elements())
    return Done(
        line["item"].integer(),
        line["within"].integer(),
        (*before.shards, shard),
        fields_from_json(line["fields"]),
        before.skipped + skipped,
    )
