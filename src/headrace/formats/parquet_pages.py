"""The pages of a Parquet column chunk, as their headers describe them: looked through before anything is unpacked.

A chunk is a row of pages, each behind a header in Thrift's compact protocol. A few bytes may claim to unpack to
gigabytes (a run length, a shared prefix, a dictionary's entry meant a million times), and decoders believe them. So the
headers are read here first: the pages must fill the chunk, hold the values that the footer speaks of, agree with the
checksums they carry, and what they can unpack to is known before memory is asked for.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from headrace.errors import DamagedError

_DATA, _INDEX, _DICTIONARY, _DATA_V2 = 0, 1, 2, 3
_DICTIONARY_ENCODINGS = (2, 8)
_DELTA_BYTE_ARRAY = 7
_MAX_DEPTH, _MAX_FIELDS, _MAX_ITEMS = 8, 64, 1024  # several times what a real header has
_MAX_HEADER_BYTES = 16 << 20  # statistics may hold two long values
_OFFSET_BYTES, _LEVEL_BYTES = 4, 2


class Page(NamedTuple):
    """One page, from its header."""

    kind: int
    packed_bytes: int
    unpacked_bytes: int
    num_values: int
    encoding: int
    start: int
    """Where its bytes begin in the chunk."""
    crc: int | None


@dataclass(frozen=True, slots=True)
class Leaf:
    """One column of plain values, as the file's schema has it: lists and structs are made of several."""

    path: str
    value_bytes: int | None
    """Memory of one value; None if each has a length of its own."""
    is_repeated: bool
    """Whether a row may hold several values, or none."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a chunk unpacks to at most."""

    num_bytes: int
    """Memory, where its dictionary stays one."""
    widest_bytes: int
    """How long a single value can be that is spelled with parts of the one before it; 0 if there is none such."""
    has_dictionary: bool
    """Whether values are numbers of entries in a dictionary."""


def look_through(chunk: memoryview, leaf: Leaf, num_values: int, *, check_crc: bool) -> Unpacked:
    """What a chunk unpacks to. `num_values` is what the footer says of it.

    Raises DamagedError if its pages do not fill it, do not hold these values, or with `check_crc` differ from their
    checksums.
    """
    num_bytes = dictionary_bytes = largest_bytes = widest_bytes = found = 0
    has_dictionary = False
    for page in _pages(chunk, leaf.path):
        if check_crc and page.crc is not None:
            _check_crc(chunk, page, leaf.path)
        if page.kind == _DICTIONARY:
            dictionary_bytes += page.unpacked_bytes
        elif page.kind in (_DATA, _DATA_V2):
            found += page.num_values
            num_bytes += page.unpacked_bytes
            largest_bytes = max(largest_bytes, page.unpacked_bytes)
            has_dictionary |= page.encoding in _DICTIONARY_ENCODINGS
            if page.encoding == _DELTA_BYTE_ARRAY and leaf.value_bytes is None:
                widest_bytes = max(widest_bytes, page.unpacked_bytes)
    if found != num_values:
        raise DamagedError(f"the pages of column {leaf.path!r} hold {found:,} values, the footer says {num_values:,}")
    levels = 2 * _LEVEL_BYTES if leaf.is_repeated else _LEVEL_BYTES
    if leaf.value_bytes is None:
        values = num_values * (_OFFSET_BYTES + levels) + num_bytes
    else:
        values = num_values * (leaf.value_bytes + levels) + largest_bytes
    return Unpacked(values + dictionary_bytes, widest_bytes, has_dictionary)


def _pages(chunk: memoryview, path: str) -> Iterator[Page]:
    at = 0
    while at < len(chunk):
        try:
            page = _page(_Compact(chunk[at : at + _MAX_HEADER_BYTES]), at)
        except (IndexError, KeyError, ValueError, TypeError) as err:
            raise DamagedError(f"column {path!r} has no page where one begins, at its byte {at:,}") from err
        at = page.start + page.packed_bytes
        if at > len(chunk):
            raise DamagedError(f"a page of column {path!r} reaches {at - len(chunk):,} bytes behind its end")
        yield page


def _page(compact: _Compact, at: int) -> Page:
    """The page whose header is read. KeyError, TypeError, ValueError, IndexError: it is none."""
    header = compact.struct()
    kind, unpacked, packed = header[1], header[2], header[3]
    details = header.get({_DATA: 5, _INDEX: 6, _DICTIONARY: 7, _DATA_V2: 8}[kind]) or {}
    num_values, encoding = (details[1], details[4 if kind == _DATA_V2 else 2]) if kind != _INDEX else (0, 0)
    if min(packed, unpacked, num_values) < 0:
        raise ValueError("a negative size")
    return Page(kind, packed, unpacked, num_values, encoding, at + compact.at, header.get(4))


def _check_crc(chunk: memoryview, page: Page, path: str) -> None:
    found = zlib.crc32(chunk[page.start : page.start + page.packed_bytes])
    assert page.crc is not None
    stated = page.crc % 2**32
    if found != stated:
        raise DamagedError(
            f"the page at byte {page.start:,} of column {path!r} has the checksum {found:08x}, not {stated:08x}"
        )


class _Compact:
    """Thrift's compact protocol, as far as page headers need it; every field of a struct by its number."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """A struct. IndexError where the data ends within it, ValueError for what the protocol does not know."""
        if depth > _MAX_DEPTH:
            raise ValueError("structs within structs")
        fields: dict[int, Any] = {}
        number = 0
        for _ in range(_MAX_FIELDS):
            if (head := self._byte()) == 0:
                return fields
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        raise ValueError("a struct of many fields")

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind in (9, 10):
            return self._list(depth)
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"a value of kind {kind}")

    def _list(self, depth: int) -> None:
        head = self._byte()
        length = head >> 4 if head >> 4 < 15 else self._varint()
        if depth > _MAX_DEPTH or length > _MAX_ITEMS:
            raise ValueError("lists within lists, or a long one")
        for _ in range(length):
            self._byte() if head & 15 in (1, 2) else self._value(head & 15, depth + 1)

    def _byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def _skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self._data):
            raise IndexError("the data ends within a value")

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
