"""A folder of files opened as it is, where it is small: files of one stem are a sample, folders may be classes.

All files, in the order of their keys, are taken for one long shard that is nowhere written: its index says where in it
each sample and field would lie, and reading a range of it reads the files. So what is true of packed datasets,
checksums included, is true of this one. It is read once when it is opened, which is why it must be small.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np
import xxhash

from headrace.dataset.dataset import Dataset
from headrace.dataset.shard_files import ShardFiles
from headrace.dataset.walk import Found, Unusable, Walk
from headrace.errors import DamagedError, DatasetError
from headrace.formats import Manifest, Shard, Shards
from headrace.formats.columns import Strings
from headrace.formats.tar.index import TarIndex
from headrace.storage import File, LocalFile, Place, quoted

MOST_SAMPLES = 100_000
MOST_BYTES = 1 << 30
_PACK_IT = "pack it first (headrace pack)"


def open_folder(url: str, folder: Place, max_sample_bytes: int) -> Dataset | None:
    """The dataset of a folder of files; None if it holds no file that belongs to a sample.

    Raises DatasetError for a folder that is too large for this, or with a file that is broken.
    """
    walk = Walk(folder.path)
    found = _sorted(walk)
    if not found:
        return None
    total = sum(file.size for file in found)
    if len(found) > MOST_SAMPLES or total > MOST_BYTES:
        raise DatasetError(
            f"{quoted(url)} is a folder of {len(found):,} files with {total:,} bytes; directly opened are folders of "
            f"at most {MOST_SAMPLES:,} files and {MOST_BYTES:,} bytes: {_PACK_IT}"
        )
    classes = walk.classes()
    parts = _parts(folder.path, found, classes)
    index, digest = _index(parts)
    row = Shard("files", index.num_samples, index.shard_bytes, digest, digest)
    manifest = Manifest("tar", index.fields, Shards.of([row]), classes)
    return Dataset(FolderFiles(url, folder, folder, parts=parts), manifest, max_sample_bytes, scanned=(index,))


@dataclass(frozen=True, slots=True)
class Part:
    """One field of one sample: a file, or bytes that lie in no file."""

    key: str
    field: str
    size: int
    path: str = ""
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class FolderFiles(ShardFiles):
    """The one shard of a folder, which is its files one behind the other."""

    parts: tuple[Part, ...] = ()

    def open(self, name: str, num_bytes: int, identity: str) -> File:
        return _Joined(self.parts, quoted(self.url))


class _Joined(File):
    """Files one behind the other, read as one."""

    def __init__(self, parts: tuple[Part, ...], name: str) -> None:
        self.name, self._parts = name, parts
        self._starts = [0, *accumulate(part.size for part in parts)]

    @property
    def size(self) -> int:
        return self._starts[-1]

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        view, at = memoryview(buffer).cast("B"), offset
        if offset + len(view) > self.size:
            raise DamagedError(f"{self.name} has {self.size:,} bytes: more were asked for")
        number = bisect_right(self._starts, offset) - 1
        while len(view):
            part, start = self._parts[number], at - self._starts[number]
            length = min(len(view), part.size - start)
            if length and part.path:
                with LocalFile(part.path) as file:
                    file.read_into(start, view[:length])
            elif length:
                view[:length] = part.data[start : start + length]
            view, at, number = view[length:], at + length, number + 1

    def read(self, offset: int, length: int) -> memoryview:
        buffer = memoryview(bytearray(length))
        self.read_into(offset, buffer)
        return buffer

    def close(self) -> None:
        """Nothing stays open between reads."""


def _sorted(walk: Walk) -> list[Found]:
    found: list[Found] = []
    for file in walk.files():
        if isinstance(file, Unusable):
            raise DatasetError(str(file.error))
        if file.size == 0:
            raise DatasetError(f"{quoted(file.path)} is empty (0 bytes): remove it, or {_PACK_IT} with on_error='skip'")
        found.append(file)
    return sorted(found, key=lambda file: (*file.named, file.path))


def _parts(folder: Path, found: list[Found], classes: tuple[str, ...] | None) -> tuple[Part, ...]:
    numbers = {name: str(number).encode() for number, name in enumerate(classes or ())}
    parts: list[Part] = []
    for key, files in groupby(found, key=lambda file: file.named[0]):
        fields: dict[str, Part] = {}
        for file in files:
            field = file.named[1]
            if field in fields:
                raise DatasetError(
                    f"{quoted(folder / file.path)} and {quoted(fields[field].path)} are the same field {field!r} of "
                    "one sample: rename one of them"
                )
            fields[field] = Part(key, field, file.size, os.path.join(folder, file.path))
        if classes is not None:
            number = numbers[key.partition("/")[0]]
            fields["cls"] = Part(key, "cls", len(number), data=number)
        parts += [fields[field] for field in sorted(fields)]
    return tuple(parts)


def _index(parts: tuple[Part, ...]) -> tuple[TarIndex, str]:
    """Where each sample would lie in the joined files, and the checksum of them all; reads them once."""
    joined, digest = _Joined(parts, "the folder"), xxhash.xxh3_128()
    names = {name: number for number, name in enumerate(dict.fromkeys(part.field for part in parts))}
    keys, offsets, lengths, checksums, starts = [], [], [], [], [0]
    fields, member_offsets, member_lengths = [], [], []
    at = 0
    for key, members in groupby(parts, key=lambda part: part.key):
        begin = at
        for part in members:
            fields.append(names[part.field])
            member_offsets.append(at - begin)
            member_lengths.append(part.size)
            at += part.size
        data = joined.read(begin, at - begin)
        digest.update(data)
        keys.append(key)
        offsets.append(begin)
        lengths.append(at - begin)
        checksums.append(xxhash.xxh3_64_intdigest(data))
        starts.append(len(fields))
    index = TarIndex(
        at,
        tuple(names),
        Strings.of(keys),
        np.array(offsets, np.int64),
        np.array(lengths, np.int64),
        np.array(checksums, np.uint64),
        np.array(starts, np.int64),
        np.array(fields, np.int64),
        np.array(member_offsets, np.int64),
        np.array(member_lengths, np.int64),
    )
    return index, digest.hexdigest()
