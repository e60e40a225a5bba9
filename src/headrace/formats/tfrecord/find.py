"""Which files of a folder are TFRecord shards, by how they begin and how they are named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from headrace.formats.format import Found, Listing, ScanOptions
from headrace.formats.tfrecord.framing import (
    HEADER_BYTES,
    header_length,
)
from headrace.formats.unpacking import codec_of, unpacked_head

IDX = "idx"
_NUMBERS = re.compile(r"\d+")
_HEAD_BYTES = 512
_ZLIB = b"\x78"  # and its two bytes are a multiple of 31; Arrow unpacks it as it does gzip


def find_tfrecords(listing: Listing, options: ScanOptions) -> Found | None:
    """The files of a folder that begin with a TFRecord's header, plain or packed, and those that are named like them.

    A shard whose first bytes are damaged is not to go missing.
    """
    found = {name for name in listing.names if _is_tfrecord(listing.head(name, _HEAD_BYTES))}
    patterns = {_NUMBERS.sub("0", name) for name in found}
    if not found and not all(".tfrecord" in name.lower() for name in listing.names):
        return None
    files = [name for name in listing.names if ".tfrecord" in name.lower() or _NUMBERS.sub("0", name) in patterns]
    return Found(files, [_Beside(listing, name) for name in files]) if files else None


class _Beside(Mapping[str, Any]):
    """What lies beside a shard, read only when it is scanned: there may be thousands."""

    def __init__(self, listing: Listing, name: str) -> None:
        self._listing, self._name = listing, f"{name}.{IDX}"

    def __getitem__(self, what: str) -> bytes | None:
        if what != IDX:
            raise KeyError(what)
        try:
            return self._listing.read(self._name)
        except FileNotFoundError:
            return None

    def __iter__(self) -> Iterator[str]:
        return iter((IDX,))

    def __len__(self) -> int:
        return 1


def _is_tfrecord(head: bytes) -> bool:
    codec = codec_in(head)
    return header_length(head if codec is None else unpacked_head(head, codec, HEADER_BYTES)) is not None


def codec_in(head: bytes) -> str | None:
    """The packing of a file. It is none if a plain record begins it, whatever its length looks like."""
    if header_length(head) is not None:
        return None
    is_zlib = head[:1] == _ZLIB and len(head) > 1 and int.from_bytes(head[:2], "big") % 31 == 0
    return codec_of(head) or ("gz" if is_zlib else None)
