"""One pass over a token file that headrace did not write, bare or with the header of llm.c and modded-nanogpt.

The header is 256 numbers of 32 bits: a magic number that says the type, a version, and how many tokens follow. A bare
file says nothing of itself: its type comes from its name (`tokens.uint16.bin`) or from whoever opens it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xxhash

from headrace.errors import DamagedError, OptionError
from headrace.formats.columns import Strings
from headrace.formats.format import Found, Listing, ScanOptions
from headrace.formats.shards import Shard
from headrace.formats.tokens.index import COARSE_BYTES, DTYPES, FINE_BYTES, Blocks, TokensIndex, checked_bytes
from headrace.storage import File

_NAMED_DTYPE = re.compile(r"\.(uint16|uint32)\.bin$")
_CHUNK_BYTES = 1 << 20
_HEADER_BYTES = 1024
_MAGIC = {20240520: (1, "uint16"), 20240801: (7, "uint32")}
"""The version that goes with a magic number, and the type of the tokens."""


class BlockSums:
    """Checksums of blocks, taken as bytes go by. How large the blocks are to be is known only at the end."""

    def __init__(self) -> None:
        self._num_bytes = 0
        self._sums = {FINE_BYTES: array("Q"), COARSE_BYTES: array("Q")}
        self._rest = {covered: bytearray() for covered in self._sums}

    def add(self, data: bytes | memoryview) -> None:
        """The next bytes of the shard."""
        self._num_bytes += len(data)
        for covered, sums in self._sums.items():
            if checked_bytes(self._num_bytes) <= covered:
                self._add(covered, sums, data)

    def blocks(self) -> Blocks:
        """Those of the whole shard."""
        covered = checked_bytes(self._num_bytes)
        sums, rest = self._sums[covered], self._rest[covered]
        if rest:
            sums.append(xxhash.xxh3_64_intdigest(rest))
            rest.clear()
        return Blocks(self._num_bytes, covered, np.array(sums, np.uint64))

    def _add(self, covered: int, sums: array[int], data: bytes | memoryview) -> None:
        rest = self._rest[covered]
        rest += data
        whole = len(rest) // covered * covered
        with memoryview(rest) as view:
            sums.extend(xxhash.xxh3_64_intdigest(view[at : at + covered]) for at in range(0, whole, covered))
        del rest[:whole]


class _Header(NamedTuple):
    dtype: str
    num_tokens: int


def find_tokens(listing: Listing, options: ScanOptions) -> Found | None:
    """Files with a header, and those named like `tokens.uint16.bin`; with a dtype given every `.bin` file."""
    files = [name for name in listing.names if _is_named(name, options) or _header(listing.head(name, _HEADER_BYTES))]
    return Found(files) if files else None


def scan_tokens(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[TokensIndex, Shard]:
    """The index of a token file, one document named like it, and its row.

    Raises OptionError if the type of its tokens is not known, DamagedError if it is no whole number of them, or not as
    many as its header says.
    """
    digest, sums = xxhash.xxh3_128(), BlockSums()
    with file.stream() as stream:
        chunk = stream.read(_CHUNK_BYTES)
        header = _header(chunk)
        while chunk:
            digest.update(chunk)
            sums.add(chunk)
            chunk = stream.read(_CHUNK_BYTES)
    blocks, header_bytes = sums.blocks(), _HEADER_BYTES if header else 0
    dtype = _dtype(file, hints["file"], header, options)
    num_tokens = _num_tokens(file, blocks.shard_bytes - header_bytes, dtype, header)
    stem = _NAMED_DTYPE.sub("", hints["file"]).removesuffix(".bin")
    document = Strings.of([stem]), np.array([0], np.int64), np.array([num_tokens], np.int64)
    index = TokensIndex(dtype, header_bytes, *document, blocks)
    return index, Shard("", 1, blocks.shard_bytes, digest.hexdigest(), "", header_bytes=header_bytes)


def _is_named(name: str, options: ScanOptions) -> bool:
    return name.endswith(".bin") and (options.dtype is not None or _dtype_in_name(name) is not None)


def _dtype_in_name(name: str) -> str | None:
    found = _NAMED_DTYPE.search(name)
    return found[1] if found else None


def _header(head: bytes) -> _Header | None:
    """What a header says, if the file begins with one."""
    if len(head) < _HEADER_BYTES:
        return None
    magic, version, num_tokens = np.frombuffer(head, "<i4", 3).tolist()
    known_version, dtype = _MAGIC.get(magic, (None, ""))
    return _Header(dtype, num_tokens) if version == known_version else None


def _dtype(file: File, name: str, header: _Header | None, options: ScanOptions) -> str:
    said = options.dtype or _dtype_in_name(name)
    dtype = said or (header.dtype if header else None)
    if dtype not in DTYPES:
        raise OptionError(
            f"the type of the tokens in {file.name} must be known, uint16 or uint32, got {dtype!r}: rename the file "
            "like tokens.uint16.bin, or index it with dtype='uint16' (headrace index --dtype uint16)"
        )
    if header is not None and dtype != header.dtype:
        raise OptionError(f"the header of {file.name} says that its tokens are {header.dtype}: got {dtype!r}")
    return dtype


def _num_tokens(file: File, num_bytes: int, dtype: str, header: _Header | None) -> int:
    num_tokens, rest = divmod(num_bytes, np.dtype(dtype).itemsize)
    if rest:
        raise DamagedError(
            f"{file.name} has {num_bytes:,} bytes, which is no whole number of {dtype} tokens; restore it"
        )
    if header is not None and header.num_tokens != num_tokens:
        raise DamagedError(
            f"{file.name} holds {num_tokens:,} tokens, and its header says {header.num_tokens:,}; restore it"
        )
    return num_tokens
