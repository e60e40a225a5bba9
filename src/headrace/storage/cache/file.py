"""A file in a store, read through a cache.

A range is cut at the blocks' borders. Blocks that the cache has are read from it; the store is not asked for anything.
Of the others this reader claims those that nobody is downloading, fetches neighbours in one request and publishes them;
only then, holding no claim, does it wait for those that others download. So a block is downloaded once, nobody waits
in a circle, and the blocks of a downloader that died are claimed by one of those who waited.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakValueDictionary

from headrace.errors import DamagedError, StorageError
from headrace.storage.ahead import Ahead
from headrace.storage.cache.block import BLOCK_BYTES, BlockKey, content_id
from headrace.storage.cache.cache import Cache
from headrace.storage.cache.folder import FolderCache
from headrace.storage.cache.locks import Locks, Sleeps
from headrace.storage.cache.memory import RamCache
from headrace.storage.cache.options import RAM, CacheOptions
from headrace.storage.file import STREAM_BYTES, File
from headrace.storage.place import Place

REQUEST_BLOCKS = 8
"""Neighbouring blocks that one request fetches at most: it bounds the memory that a download takes."""
PATIENCE_SEC = 90.0
"""How long a block that another process downloads is waited for, before it is read from the store without the cache.
More than a store's own deadline, so only a process that was stopped is not waited for."""

_opened: WeakValueDictionary[CacheOptions, Cache] = WeakValueDictionary()


def open_cache(options: CacheOptions) -> Cache:
    """This process's view of a cache; one for equal options, as long as somebody holds it.

    What a cache in RAM holds stays as long as some process of this user on this machine holds it open.
    Raises StorageError if it cannot be used.
    """
    cache = _opened.get(options)
    if cache is None:
        cache = RamCache(options.max_bytes) if options.folder == RAM else FolderCache(options.folder, options.max_bytes)
        _opened[options] = cache  # two threads may do this at once: caches are made to be shared
    return cache


def cached(
    file_opener: Callable[[], File], options: CacheOptions, identity: str, num_bytes: int, *, place: Place
) -> File:
    """The file at `place`, read through a cache. The store is not asked for what the cache holds, nor to open it.

    `file_opener` opens it in its store; it is called when first needed, by any thread. `identity` names its content: a
    checksum of the whole, or URL and version. Two files of one identity and length are taken for one.

    What it returns was downloaded for this identity and has not changed since: every read is checked against checksums
    made when it came. That what came was right is for the reader to check, who calls `forget` if it was not.
    Raises StorageError if the cache cannot be used.
    """
    return CachedFile(file_opener, open_cache(options), identity, num_bytes, place)


class Part(NamedTuple):
    """What is wanted of one block."""

    key: BlockKey
    first: int
    """Where it begins in the file."""
    view: memoryview
    """Where it goes."""

    @property
    def start(self) -> int:
        """Where it begins in the block."""
        return self.first - self.key.number * BLOCK_BYTES


class CachedFile(File):
    """A file in a store, read through a cache. Safe to use from several threads; not to be pickled."""

    is_remote = True

    def __init__(
        self, file_opener: Callable[[], File], cache: Cache, identity: str, num_bytes: int, place: Place
    ) -> None:
        self.place, self.name = place, str(place)
        self._open, self._cache, self._size = file_opener, cache, num_bytes
        self._content = content_id(identity, num_bytes)
        self._is_closed = False

    @property
    def size(self) -> int:
        """The file's length in bytes, as it was given."""
        return self._size

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill the writable buffer with the bytes from `offset` on.

        Raises DamagedError if the file ends before the buffer is full, StorageError if the store refuses.
        """
        view = memoryview(buffer).cast("B")
        self._check(offset, len(view))
        missing = [part for part in self._parts(offset, view) if not self._from_cache(part)]
        sleeps = Sleeps(PATIENCE_SEC)
        while missing and not self._cache.is_resting:
            wanted, missing = missing, self._fetch(missing)
            if len(missing) < len(wanted):
                sleeps = Sleeps(PATIENCE_SEC)
            if missing and not sleeps.sleep():
                break
        for run in _neighbours(missing):
            end = run[-1].first + len(run[-1].view)
            self._source().read_into(run[0].first, view[run[0].first - offset : end - offset])

    def read(self, offset: int, length: int) -> memoryview:
        """The bytes of one range, in a buffer of their own. Errors as for `read_into`."""
        self._check(offset, length)  # before the buffer is made: a wrong length could ask for all memory
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return memoryview(buffer)

    def stream(self) -> io.BufferedReader:
        """The file's bytes from its start on, for one reader that goes forward, by few requests."""
        return io.BufferedReader(Ahead(self), STREAM_BYTES)

    def forget(self, offset: int, length: int) -> None:
        """Drop the blocks of a range that turned out to be damaged, so that reading it again asks the store."""
        for number in _numbers(offset, length):
            self._cache.drop(self._key(number))

    def close(self) -> None:
        """Close the file; reading afterwards is an error. Closing twice is not."""
        self._is_closed = True
        source: File | None = self.__dict__.pop("_opened", None)
        if source is not None:
            source.close()

    def _fetch(self, wanted: list[Part]) -> list[Part]:
        """Fill those parts that are there by now or that nobody is downloading; returns the others."""
        left, busy = deque(wanted), list[Part]()
        while left:
            with self._cache.locks() as claims:
                run = self._claim_run(left, busy, claims)
                if run:
                    self._download(run)
        return busy

    def _claim_run(self, left: deque[Part], busy: list[Part], claims: Locks) -> list[Part]:
        """Neighbours to be downloaded by one request, taken from `left`; what others are downloading goes to `busy`."""
        run: list[Part] = []
        while left and len(run) < REQUEST_BLOCKS and (not run or left[0].key.number == run[-1].key.number + 1):
            part = left.popleft()
            is_ours = self._cache.claim(part.key, claims)
            if not self._from_cache(part):  # else it was published since we looked
                (run if is_ours else busy).append(part)
        return run

    def _download(self, run: list[Part]) -> None:
        base = run[0].key.number * BLOCK_BYTES
        data = memoryview(bytearray(sum(part.key.length for part in run)))
        self._source().read_into(base, data)
        for part in run:
            at = part.key.number * BLOCK_BYTES - base
            block = data[at : at + part.key.length]
            part.view[:] = block[part.start : part.start + len(part.view)]
            self._cache.publish(part.key, block)

    def _from_cache(self, part: Part) -> bool:
        return self._cache.read(part.key, part.start, part.view)

    def _source(self) -> File:
        """The file in its store, opened now if it was not yet."""
        source: File | None = self.__dict__.get("_opened")
        if source is None:
            fresh = self._open()
            source = self.__dict__.setdefault("_opened", fresh)  # of two threads here at once, one wins
            if source is not fresh:
                fresh.close()
        return source

    def _parts(self, offset: int, view: memoryview) -> list[Part]:
        parts = []
        for number in _numbers(offset, len(view)):
            first = max(offset, number * BLOCK_BYTES)
            last = min(offset + len(view), (number + 1) * BLOCK_BYTES)
            parts.append(Part(self._key(number), first, view[first - offset : last - offset]))
        return parts

    def _key(self, number: int) -> BlockKey:
        return BlockKey(self._content, number, min(BLOCK_BYTES, self._size - number * BLOCK_BYTES))

    def _check(self, offset: int, length: int) -> None:
        if self._is_closed:
            raise StorageError(f"cannot read {self.name}: it has been closed")
        if offset + length > self._size:
            raise DamagedError(
                f"{self.name} is cut short: at least {offset + length:,} bytes expected, {self._size:,} found"
            )


def _numbers(offset: int, length: int) -> range:
    """The blocks that a range touches."""
    return range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES) if length else offset // BLOCK_BYTES)


def _neighbours(parts: list[Part]) -> list[list[Part]]:
    """The same parts, in runs of neighbouring blocks."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and runs[-1][-1].key.number + 1 == part.key.number:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs
