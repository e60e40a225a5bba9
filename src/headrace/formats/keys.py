"""`headrace.keys`: from the hash of a key to the sample's number in the dataset, by one small read.

Keys' hashes lie sorted in pages of 4 KiB, each with a checksum. Behind the pages are the first hash of every page,
which is what a reader holds in memory (8 bytes for some 340 keys), and a footer. Different keys may have one hash, so
what is found are candidates whose keys have to be compared.

    page    u64 xxh3_64 of the rest | u64 hashes | u32 or u64 numbers | zeros
    fences  u64 first hash of each page
    footer  magic and version | what it belongs to | u64 keys | u64 pages | u64 bytes a number | u64 of fences | u64

The seed of a page's checksum is its number and what the index belongs to. So where the file was replaced by that of a
later revision of the dataset, whoever opened the earlier one takes no page of the later for its own.

It is written in bounded memory, whatever the number of keys: see `key_runs`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from headrace.errors import DamagedError, ManifestError
from headrace.formats.columns import U64
from headrace.formats.key_runs import ENTRY, Entries, KeyRuns, shared
from headrace.formats.manifest import Manifest
from headrace.storage import File, storage_refusals

KEYS_NAME = "headrace.keys"

_PAGE_BYTES = 4096
_SUM_BYTES = 8
_MAGIC = b"HRKEYS\0\1"
_FOOTER = struct.Struct("<8s16sQQQQQ")
_TAIL_BYTES = 64 << 10
"""What is read at first: footer and fences of up to some 2.7 million keys."""


def keys_source(manifest: Manifest) -> bytes:
    """16 bytes for the dataset that keys belong to: its samples, and its shards' names, which some keys begin with."""
    digest = xxhash.xxh3_128(manifest.fingerprint.encode())
    digest.update(manifest.shards.file.starts.tobytes())
    digest.update(manifest.shards.file.text.tobytes())
    return digest.digest()


class KeyTable:
    """An index of keys, opened. Holds no file; small to pickle; safe to share by threads."""

    def __init__(self, source: bytes, num_keys: int, number_bytes: int, fences: U64) -> None:
        self.source = source
        """What it belongs to: `keys_source` of the dataset's manifest."""
        self._num_keys, self._fences = num_keys, fences
        self._number_type = np.dtype(f"<u{number_bytes}")
        self._in_page = _keys_in_page(number_bytes)

    @classmethod
    def read(cls, file: File) -> Self:
        """The table of a file. Raises ManifestError if it is malformed, DamagedError if a checksum differs."""
        size = file.size
        if size < _FOOTER.size:
            raise _malformed(file, "is too short")
        tail = file.read(size - min(size, _TAIL_BYTES), min(size, _TAIL_BYTES))
        footer = bytes(tail[-_FOOTER.size :])
        magic, source, num_keys, num_pages, number_bytes, fence_sum, footer_sum = _FOOTER.unpack(footer)
        if magic != _MAGIC:
            raise _malformed(file, "is of another kind or version")
        if xxhash.xxh3_64_intdigest(footer[:-_SUM_BYTES]) != footer_sum:
            raise _damaged(file, "footer")
        fence_bytes = 8 * num_pages
        ok = number_bytes in (4, 8) and size == num_pages * _PAGE_BYTES + fence_bytes + _FOOTER.size
        if not ok or num_pages != -(-num_keys // _keys_in_page(number_bytes)):
            raise _malformed(file, f"has {size:,} bytes, which do not fit {num_keys:,} keys")
        if fence_bytes + _FOOTER.size > len(tail):
            tail = file.read(size - fence_bytes - _FOOTER.size, fence_bytes + _FOOTER.size)
        fences = tail[len(tail) - _FOOTER.size - fence_bytes : len(tail) - _FOOTER.size]
        if xxhash.xxh3_64_intdigest(fences) != fence_sum:
            raise _damaged(file, "table")
        return cls(source, num_keys, number_bytes, np.frombuffer(fences, "<u8").astype(np.uint64))

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self._fences.nbytes

    def __len__(self) -> int:
        return self._num_keys

    def find(self, file: File, key_hash: int) -> list[int]:
        """The numbers of the samples whose keys have this hash, in order, by one range read of the file.

        Raises DamagedError if what was read differs from its checksum.
        """
        wanted = np.uint64(key_hash)
        # Equal hashes may begin in the page before the first that starts with them.
        first = max(0, int(np.searchsorted(self._fences, wanted, "left")) - 1)
        last = int(np.searchsorted(self._fences, wanted, "right"))
        found: list[int] = []
        if first < last:
            data = self._read(file, first, last)
            for page in range(first, last):
                hashes, numbers = self._columns(page, data[(page - first) * _PAGE_BYTES :])
                at, end = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
                found += numbers[at:end].tolist()
        return found

    def damage(self, file: File) -> Iterator[str]:
        """Every page whose checksum differs, in words."""
        for page in range(len(self._fences)):
            try:
                self._read(file, page, page + 1)
            except DamagedError as err:
                yield str(err)

    def _read(self, file: File, first: int, last: int) -> memoryview:
        """The pages first .. last-1, checked; what a network may have garbled is read a second time."""
        offset, length = first * _PAGE_BYTES, (last - first) * _PAGE_BYTES
        data = file.read(offset, length)
        if file.is_remote and _wrong_page(data, first, self.source) is not None:
            file.forget(offset, length)
            data = file.read(offset, length)
        wrong = _wrong_page(data, first, self.source)
        if wrong is not None:
            raise _damaged(file, f"page {wrong}")
        return data

    def _columns(self, page: int, data: memoryview) -> tuple[U64, npt.NDArray[np.unsignedinteger[Any]]]:
        count = min(self._in_page, self._num_keys - page * self._in_page)
        hashes = np.frombuffer(data, "<u8", count, _SUM_BYTES)
        return hashes, np.frombuffer(data, self._number_type, count, _SUM_BYTES + 8 * self._in_page)


def write_keys(path: Path, source: bytes, hashes: Iterable[U64], check: Callable[[U64], None] | None = None) -> int:
    """Write the index of keys whose hashes come in chunks, in storage order; returns how many there are.

    `check` is called with the numbers of the samples whose keys have one hash, for each hash that several have.

    `path` gets its bytes, on the disk for good, as they are: whoever needs a whole file or none writes to another name
    and renames. Takes about 150 MB at most, unless millions of keys are the same, and 16 bytes a key of an unnamed file
    in the same folder.
    """
    with storage_refusals("write", path), path.open("wb") as file, KeyRuns(path.parent) as runs:
        for chunk in hashes:
            runs.add(chunk)
        pages = _Pages(file, 4 if runs.num_keys <= 2**32 else 8, source)
        for entries in runs.merged():
            if check is not None:
                for numbers in shared(entries):
                    check(numbers)
            pages.add(entries)
        pages.finish()
        file.flush()
        os.fsync(file.fileno())
        return runs.num_keys


class _Pages:
    """Writes entries in order as pages, then fences and footer."""

    def __init__(self, file: IO[bytes], number_bytes: int, source: bytes) -> None:
        self._file, self._number_bytes, self._source = file, number_bytes, source
        self._in_page = _keys_in_page(number_bytes)
        self._rest = np.empty(0, ENTRY)
        self._fences: list[U64] = []
        self._num_keys = self._num_pages = 0

    def add(self, entries: Entries) -> None:
        """The entries that come next."""
        entries = np.concatenate((self._rest, entries))
        whole = len(entries) // self._in_page * self._in_page
        self._write(entries[:whole])
        self._rest = entries[whole:]

    def finish(self) -> None:
        """What is left, and all that follows the pages."""
        self._write(self._rest)
        fences = np.concatenate(self._fences).astype("<u8").tobytes()
        self._file.write(fences)
        facts = (self._num_keys, self._num_pages, self._number_bytes, xxhash.xxh3_64_intdigest(fences))
        footer = _FOOTER.pack(_MAGIC, self._source, *facts, 0)[:-_SUM_BYTES]
        self._file.write(footer + xxhash.xxh3_64_intdigest(footer).to_bytes(_SUM_BYTES, "little"))

    def _write(self, entries: Entries) -> None:
        num_pages = -(-len(entries) // self._in_page)
        padded = np.zeros(num_pages * self._in_page, ENTRY)
        padded[: len(entries)] = entries
        pages = np.zeros((num_pages, _PAGE_BYTES), np.uint8)
        hashes = padded["hash"].reshape(num_pages, self._in_page)
        numbers = padded["number"].astype(f"<u{self._number_bytes}").reshape(num_pages, self._in_page)
        behind = _SUM_BYTES + 8 * self._in_page
        pages[:, _SUM_BYTES:behind] = np.ascontiguousarray(hashes).view(np.uint8)
        pages[:, behind : behind + self._number_bytes * self._in_page] = numbers.view(np.uint8)
        numbered = enumerate(pages, self._num_pages)
        sums = [_page_sum(page[_SUM_BYTES:].data, number, self._source) for number, page in numbered]
        pages[:, :_SUM_BYTES] = np.array(sums, "<u8").view(np.uint8).reshape(num_pages, _SUM_BYTES)
        self._file.write(pages.data)
        self._fences.append(hashes[:, 0].copy())
        self._num_keys += len(entries)
        self._num_pages += num_pages


def _keys_in_page(number_bytes: int) -> int:
    return (_PAGE_BYTES - _SUM_BYTES) // (8 + number_bytes)


def _page_sum(data: memoryview, number: int, source: bytes) -> int:
    seed = (int.from_bytes(source[:8], "little") + number) % 2**64
    return xxhash.xxh3_64_intdigest(data, seed=seed)


def _wrong_page(data: memoryview, first: int, source: bytes) -> int | None:
    """The first page that differs from its checksum; `first` is the number of the first in `data`."""
    for number, at in enumerate(range(0, len(data), _PAGE_BYTES), first):
        stated = int.from_bytes(data[at : at + _SUM_BYTES], "little")
        if _page_sum(data[at + _SUM_BYTES : at + _PAGE_BYTES], number, source) != stated:
            return number
    return None


def _malformed(file: File, what: str) -> ManifestError:
    return ManifestError(f"the index of keys {file.name} {what}: {_WAY_OUT}")


def _damaged(file: File, part: str) -> DamagedError:
    return DamagedError(f"the index of keys {file.name} is damaged: the checksum of its {part} differs: {_WAY_OUT}")


_WAY_OUT = "restore it, or delete it: keys are then looked up in all indexes"
