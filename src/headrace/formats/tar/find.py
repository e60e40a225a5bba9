"""Which files of a folder are tars, by how they begin and how they are named."""

from __future__ import annotations

import re

from headrace.formats.format import Found, Listing, ScanOptions
from headrace.formats.tar.ustar import BLOCK_BYTES, TarError, parse_header
from headrace.formats.unpacking import codec_of, unpacked_head

_NAMED = re.compile(r"\.(tar|tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_HEAD_BYTES = (4 << 10, 128 << 10, 1 << 20)
"""How much of a compressed file is looked at, in turn: bz2 gives nothing before a block, of up to 900 kB, is whole."""


def find_tars(listing: Listing, options: ScanOptions) -> Found | None:
    """The files of a folder that begin with a tar header, compressed or not, and all that are named like tars."""
    files = [name for name in listing.names if _NAMED.search(name) or _begins_tar(listing, name)]
    return Found(files) if files else None


def _begins_tar(listing: Listing, name: str) -> bool:
    head = listing.head(name, BLOCK_BYTES)
    if (codec := codec_of(head)) is None:
        return _is_header(head)
    for num_bytes in _HEAD_BYTES:
        head = listing.head(name, num_bytes)
        unpacked = unpacked_head(head, codec, BLOCK_BYTES)
        if unpacked or len(head) < num_bytes:
            return _is_header(unpacked)
    return False


def _is_header(block: bytes) -> bool:
    if len(block) < BLOCK_BYTES or not block.strip(b"\0"):
        return False
    try:
        parse_header(block)
    except TarError:
        return False
    return True
