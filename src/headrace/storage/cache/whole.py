"""Small files that are read whole and whose length is not known, such as indexes: kept in the cache too.

A cached file has a length, so that of such a file is kept as a file of its own, eight bytes long. Whoever has the claim
on that one fetches the content, publishes it, and publishes the length last: where there is a length, the content has
been there.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.errors import DamagedError
from headrace.storage.cache.file import CachedFile, open_cache
from headrace.storage.cache.options import CacheOptions
from headrace.storage.file import File
from headrace.storage.place import Place

_LENGTH_BYTES = 8


def cached_bytes(fetch: Callable[[], bytes], options: CacheOptions, identity: str, *, place: Place) -> bytes:
    """The bytes that `fetch` returns, from the cache where it has them. Two contents of one identity are taken for one.

    What is wrong with the bytes is for `fetch` to find and raise: then nothing is kept.
    """
    cache = open_cache(options)
    fetched: list[bytes] = []

    def content() -> bytes:
        if not fetched:
            fetched.append(fetch())
        return fetched[0]

    def kept(length: int) -> bytes:
        def content_file() -> File:
            if len(content()) != length:
                raise DamagedError(f"{place} has another length than before, under the same identity: make it again")
            return _Bytes(content(), place)

        return bytes(CachedFile(content_file, cache, f"content of {identity}", length, place).read(0, length))

    def length_file() -> File:
        length = len(content())
        kept(length)
        return _Bytes(length.to_bytes(_LENGTH_BYTES, "little"), place)

    lengths = CachedFile(length_file, cache, f"length of {identity}", _LENGTH_BYTES, place)
    return kept(int.from_bytes(lengths.read(0, _LENGTH_BYTES), "little"))


class _Bytes(File):
    """Bytes in memory, as a file."""

    def __init__(self, data: bytes, place: Place) -> None:
        self.place, self.name, self._data = place, str(place), data

    @property
    def size(self) -> int:
        return len(self._data)

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        view = memoryview(buffer)
        view[:] = self._data[offset : offset + len(view)]

    def read(self, offset: int, length: int) -> memoryview:
        return memoryview(self._data)[offset : offset + length]

    def close(self) -> None:
        pass
