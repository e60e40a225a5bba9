"""Indexes of shards on their way to where they will lie: in a nameless file, until it is known that all go together."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, overload

import numpy as np
import xxhash

from headrace.formats import Format, Manifest
from headrace.formats.columns import U64
from headrace.formats.index import StoredIndex
from headrace.storage import Place, storage_refusals


class KeptIndexes:
    """Index files' contents and keys' hashes, in the order in which they come. Memory holds two numbers a shard."""

    def __init__(self, home: Place, format_: Format) -> None:
        """The file lies on the disk of the folder `home` if that is there, else where the system puts temporary ones.

        Raises StorageError if that takes no file.
        """
        self._folder = home.path if home.is_local and home.path.is_dir() else Path(tempfile.gettempdir())
        self._format = format_
        self._lengths: list[tuple[int, int]] = []
        with storage_refusals("write a temporary file in", self._folder):
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by `__exit__`

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, index: StoredIndex) -> str:
        """Keep the next shard's index; returns its file's xxh3_128."""
        content, hashes = index.to_file(), index.key_hashes().tobytes()
        with storage_refusals("write a temporary file in", self._folder):
            self._file.write(content)
            self._file.write(hashes)
        self._lengths.append((len(content), len(hashes)))
        return xxhash.xxh3_128_hexdigest(content)

    def contents(self) -> Iterator[bytes]:
        """The content of each index file."""
        return (content for content, _ in self._kept())

    def opened(self, manifest: Manifest) -> Sequence[StoredIndex]:
        """Each shard's index as of the finished dataset, read when it is asked for."""
        return _Opened(self, manifest)

    def read(self, k: int, manifest: Manifest) -> StoredIndex:
        """The index of shard k as of the finished dataset."""
        start = sum(content + hashes for content, hashes in self._lengths[:k])
        with storage_refusals("read a temporary file in", self._folder):
            self._file.seek(start)
            content = self._file.read(self._lengths[k][0])
        shards = manifest.shards
        index = self._format.read_index(memoryview(content), shards.file[k], int(shards.bytes[k]))
        return index.read_as(manifest.fields)

    def key_hashes(self) -> Iterator[U64]:
        """The hashes of each shard's keys."""
        return (np.frombuffer(hashes, np.uint64) for _, hashes in self._kept())

    def _kept(self) -> Iterator[tuple[bytes, bytes]]:
        with storage_refusals("read a temporary file in", self._folder):
            at = 0
            for content, hashes in self._lengths:
                self._file.seek(at)  # somebody may have read an index in between
                yield self._file.read(content), self._file.read(hashes)
                at += content + hashes


class _Opened(Sequence[StoredIndex]):
    """Indexes, each read anew."""

    def __init__(self, kept: KeptIndexes, manifest: Manifest) -> None:
        self._kept, self._manifest = kept, manifest

    def __len__(self) -> int:
        return len(self._manifest.shards)

    @overload
    def __getitem__(self, k: int) -> StoredIndex: ...

    @overload
    def __getitem__(self, k: slice) -> list[StoredIndex]: ...

    def __getitem__(self, k: int | slice) -> StoredIndex | list[StoredIndex]:
        if isinstance(k, slice):
            return [self[number] for number in range(*k.indices(len(self)))]
        return self._kept.read(k, self._manifest)
