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
from typing import NamedTuple

from headrace.errors import DamagedError
from headrace.formats.parquet.thrift import Reader, Struct, ThriftError

_DATA, _INDEX, _DICTIONARY, _DATA_V2 = 0, 1, 2, 3
_DICTIONARY_ENCODINGS = (2, 8)
_DELTA_BYTE_ARRAY = 7
_MAX_HEADER_VALUES, _MAX_HEADER_BYTES = 1000, 16 << 20  # statistics hold two values, which may be long
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

    names: tuple[bytes, ...]
    """Of what it lies in, from the outermost on, and its own."""
    kind: int
    """Its physical type, as Parquet numbers them."""
    value_bytes: int | None
    """Memory of one value; None if each has a length of its own."""
    is_repeated: bool
    """Whether a row may hold several values, or none."""

    @property
    def path(self) -> str:
        """Its names with dots between."""
        return b".".join(self.names).decode(errors="replace")


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
    for page in pages(chunk, leaf.path):
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


def pages(chunk: memoryview, path: str) -> Iterator[Page]:
    """The pages that make up a chunk of the column `path`. Raises DamagedError where there is none."""
    at = 0
    while at < len(chunk):
        reader = Reader(chunk[at : at + _MAX_HEADER_BYTES], _MAX_HEADER_VALUES)
        try:
            page = _page(reader.struct(), at + reader.at)
        except (ThriftError, LookupError, ValueError, TypeError, AttributeError) as err:
            raise DamagedError(f"column {path!r} has no page where one begins, at its byte {at:,}") from err
        at = page.start + page.packed_bytes
        if at > len(chunk):
            raise DamagedError(f"a page of column {path!r} reaches {at - len(chunk):,} bytes behind its end")
        yield page


def _page(header: Struct, start: int) -> Page:
    """The page behind a header. LookupError, TypeError, ValueError, AttributeError: it is none."""
    kind, unpacked, packed = header[1], header[2], header[3]
    details = header.get({_DATA: 5, _INDEX: 6, _DICTIONARY: 7, _DATA_V2: 8}[kind], {})
    num_values, encoding = (details[1], details[4 if kind == _DATA_V2 else 2]) if kind != _INDEX else (0, 0)
    crc = header.get(4)
    if min(packed, unpacked, num_values, encoding) < 0 or not isinstance(crc, int | None):
        raise ValueError("a negative size, or a checksum that is no number")
    return Page(kind, packed, unpacked, num_values, encoding, start, crc)


def _check_crc(chunk: memoryview, page: Page, path: str) -> None:
    found = zlib.crc32(chunk[page.start : page.start + page.packed_bytes])
    assert page.crc is not None
    stated = page.crc % 2**32
    if found != stated:
        raise DamagedError(
            f"the page at byte {page.start:,} of column {path!r} has the checksum {found:08x}, not {stated:08x}"
        )
