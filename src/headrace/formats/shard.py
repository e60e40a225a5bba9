"""Writing a shard: samples made ready elsewhere go one behind the other into a file under a temporary name.

Making a sample ready (`encode`, a pure function of each format) and writing it are apart, so that threads do the
former while one writer keeps the order.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from headrace.formats.fields import Field
from headrace.formats.index import StoredIndex
from headrace.formats.manifest import INDEX_SUFFIX
from headrace.formats.shards import Shard
from headrace.storage import remove_file, replace_file, storage_refusals, write_file, write_parts
from headrace.storage.writing import TEMPORARY_SUFFIX

_WRITE_BYTES = 4 << 20
"""Of samples that go to the disk by one call: threads that took turns at every sample would cost more than the copy."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sample, as it will lie in a shard."""

    key: str
    blob: bytes
    fields: Mapping[str, Field]
    members: tuple[tuple[str, int, int], ...] = ()
    """(field, offset in the blob, length) of each field, where the format keeps fields apart."""
    checksum: int = field(default=0)
    """xxh3_64 of the blob, where the format has a checksum a sample."""
    values: Mapping[str, Any] | None = None
    """The fields' values, where the format writes many samples as one (a row group); then there is no blob."""


class ShardWriter(ABC):
    """Writes one shard. The file gets its name when it is finished; until then it is `NAME.tmp`."""

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        """`fields` are those of the samples written to earlier shards of the dataset."""
        self.path = path
        self.num_samples = 0
        self.num_bytes = 0
        self._fields = fields
        self._digest = xxhash.xxh3_128()
        self._pending: list[bytes | memoryview] = []
        self._pending_bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-write")  # begun when it is first needed
        self._writing: Future[None] | None = None
        self._temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        with storage_refusals("write", path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o644)

    @property
    def fields(self) -> Mapping[str, Field] | None:
        """What the samples of this shard and of earlier ones have, where the writer decides it: a column has one type,
        whatever single samples show of it. None: it is what the samples' own fields have in common."""
        return None

    def add(self, sample: Encoded) -> None:
        """Write one sample."""
        self._add(sample)
        self.num_samples += 1

    def size_with(self, sample: Encoded) -> int:
        """How long the finished shard would be with this sample too, in bytes."""
        return self.num_bytes + self._added_bytes(sample) + len(self._trailer())

    def finish(self) -> Shard:
        """End the shard, write its index beside it, and make both last. Returns the manifest's row."""
        self._write(self._trailer())
        self._wait()
        self._write_now(self._pending)
        with storage_refusals("write", self.path):
            os.fsync(self._fd)
        self._close()
        index = self._index().to_file()
        index_path = self.path.with_name(self.path.name + INDEX_SUFFIX)
        write_file(index_path, index)
        replace_file(self._temporary, self.path)
        return Shard(
            self.path.name,
            self.num_samples,
            self.num_bytes,
            self._digest.hexdigest(),
            xxhash.xxh3_128_hexdigest(index),
        )

    def abandon(self) -> None:
        """Remove what has been written of an unfinished shard; after `finish` nothing happens."""
        self._close()
        with suppress(OSError):
            remove_file(self._temporary)

    @abstractmethod
    def _add(self, sample: Encoded) -> None:
        """Note the sample for the index, and write it with `_write`."""

    @abstractmethod
    def _added_bytes(self, sample: Encoded) -> int:
        """How many bytes the sample takes in the shard."""

    @abstractmethod
    def _index(self) -> StoredIndex:
        """The index of the finished shard."""

    def _trailer(self) -> bytes:
        return b""

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self.num_bytes += len(data)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= _WRITE_BYTES:
            self._hand_over()

    def _hand_over(self) -> None:
        """Have what is pending written while the next samples come."""
        self._wait()
        self._writing = self._thread.submit(self._write_now, self._pending)
        self._pending, self._pending_bytes = [], 0

    def _write_now(self, parts: list[bytes | memoryview]) -> None:
        with storage_refusals("write", self.path):
            write_parts(self._fd, parts)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _close(self) -> None:
        self._thread.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
