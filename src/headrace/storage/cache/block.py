"""A block: one stretch of a file as the cache keeps it, with checksums of its own.

Stored, a block is a header page and then its bytes. The header names the content and the block's number, so that bytes
found in the wrong place are never taken for right ones, and holds an xxh3-64 of every 64 KiB, so that a small read
checks what it returns without reading the whole block. The same form serves a file in a folder and a slot in shared
memory, where a block may be evicted and overwritten while it is read: then the checksums differ, and it counts as not
there.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import threading
from typing import NamedTuple, Protocol

from xxhash import xxh3_64, xxh3_64_intdigest

BLOCK_BYTES = 2 << 20
"""What is downloaded and evicted as one: a compromise of first-batch latency, requests and number of files."""
PAGE_BYTES = 64 << 10
"""What one checksum covers."""
HEADER_BYTES = 4096
ROUND_BYTES = 4096
"""What a block takes is counted in units of this, as disks and memory give it."""

_MAGIC = b"hrblock1"
_HEAD = struct.Struct("<8s16sQQ")
_NAME = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,17})")
_MAX_CLAIM = 1 << 62
_scratch = threading.local()


class BlockKey(NamedTuple):
    """What names a block."""

    content: bytes
    """16 bytes that stand for the file's content."""
    number: int
    length: int
    """Its bytes: BLOCK_BYTES, or fewer at the end of the file."""

    @property
    def name(self) -> str:
        """What its file is called."""
        return f"{self.content.hex()}-{self.number}"

    @property
    def claim(self) -> int:
        """The number of the lock that whoever downloads it must hold. Never 0."""
        return claim_of(self.content, self.number)

    def head(self) -> bytes:
        """How its header begins."""
        return _HEAD.pack(_MAGIC, self.content, self.number, self.length)


def content_id(identity: str, num_bytes: int) -> bytes:
    """16 bytes that stand for a file's content, made so that nobody can choose another identity with the same ones."""
    return hashlib.blake2b(f"{num_bytes} {BLOCK_BYTES} {identity}".encode(), digest_size=16).digest()


def claim_of(content: bytes, number: int) -> int:
    """The number of a block's lock; that two blocks share one is unlikely, and does no harm."""
    return 1 + (int.from_bytes(content[:8], "little") + number) % (_MAX_CLAIM - 1)


def parse_name(name: str) -> tuple[bytes, int] | None:
    """(content, number) of a name that this cache gives to its files; None for any other."""
    found = _NAME.fullmatch(name)
    return (bytes.fromhex(found[1]), int(found[2])) if found else None


def rounded(num_bytes: int) -> int:
    """Bytes in whole units of storage."""
    return -(-num_bytes // ROUND_BYTES) * ROUND_BYTES


def stored_bytes(length: int) -> int:
    """What a block with so many bytes takes, header and rounding included."""
    return rounded(HEADER_BYTES + length)


def header_of(key: BlockKey, data: memoryview) -> bytes:
    """The header page of a block."""
    sums = [xxh3_64_intdigest(data[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES)]
    head = key.head() + struct.pack(f"<{len(sums)}Q", *sums)
    return (head + struct.pack("<Q", xxh3_64_intdigest(head))).ljust(HEADER_BYTES, b"\0")


def write_block(fd: int, base: int, key: BlockKey, data: memoryview) -> None:
    """Write header and bytes of a block at `base`."""
    parts, at = [memoryview(header_of(key, data)), data], base
    while parts:
        done = os.pwritev(fd, parts, at)
        at += done
        while parts and done >= len(parts[0]):
            done -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][done:]


class StoredBlock(Protocol):
    """Where a block may be: the bytes there, header first."""

    def head(self, num_bytes: int) -> bytes:
        """The first bytes; fewer where it ends sooner."""

    def fill(self, at: int, before: int, view: memoryview, after: int) -> tuple[memoryview, memoryview] | None:
        """Fill `view` with the bytes from `at` on, and return those around them. None if it ends sooner."""


class BlockFile:
    """A block in a file of its own."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def head(self, num_bytes: int) -> bytes:
        """The first bytes."""
        return os.pread(self._fd, num_bytes, 0)

    def fill(self, at: int, before: int, view: memoryview, after: int) -> tuple[memoryview, memoryview] | None:
        """The bytes from `at` on and those around them, read by one call."""
        pads: memoryview | None = getattr(_scratch, "pads", None)
        if pads is None:  # one for each thread, overwritten by its next read
            pads = _scratch.pads = memoryview(bytearray(2 * PAGE_BYTES))
        parts = pads[:before], view, pads[PAGE_BYTES : PAGE_BYTES + after]
        done = os.preadv(self._fd, parts, at - before)
        return (parts[0], parts[2]) if done == before + len(view) + after else None


def read_block(block: StoredBlock, key: BlockKey, start: int, view: memoryview) -> bool:
    """Fill `view`, which is not empty, with the block's bytes from `start` on, checked.

    False, with anything in `view`, where what lies there is not that block or not sound.
    """
    sums = _sums(block, key)
    if sums is None:
        return False
    end = start + len(view)
    first, last = start // PAGE_BYTES, (end - 1) // PAGE_BYTES
    before, after = start - first * PAGE_BYTES, min((last + 1) * PAGE_BYTES, key.length) - end
    around = block.fill(HEADER_BYTES + start, before, view, after)
    if around is None:
        return False
    if before or after:
        return all(_page_sum(page, first, last, start, view, around) == sums[page] for page in range(first, last + 1))
    return all(
        xxh3_64_intdigest(view[at : at + PAGE_BYTES]) == sums[first + at // PAGE_BYTES]
        for at in range(0, len(view), PAGE_BYTES)
    )


def _page_sum(
    page: int, first: int, last: int, start: int, view: memoryview, around: tuple[memoryview, memoryview]
) -> int:
    """The checksum of a page of which `view`, from `start` of the block on, may hold a part only."""
    inside = view[max(0, page * PAGE_BYTES - start) : (page + 1) * PAGE_BYTES - start]
    if len(inside) == PAGE_BYTES:
        return xxh3_64_intdigest(inside)
    digest = xxh3_64(around[0] if page == first else b"")
    digest.update(inside)
    digest.update(around[1] if page == last else b"")
    return digest.intdigest()


def _sums(block: StoredBlock, key: BlockKey) -> tuple[int, ...] | None:
    """The checksums of the block's pages, and one of the header; None if it is another's header, or a damaged one."""
    num_pages = -(-key.length // PAGE_BYTES)
    head = key.head()
    raw = block.head(len(head) + 8 * num_pages + 8)
    if len(raw) < len(head) + 8 * num_pages + 8 or not raw.startswith(head):
        return None
    sums: tuple[int, ...] = struct.unpack_from(f"<{num_pages + 1}Q", raw, len(head))
    return sums if xxh3_64_intdigest(raw[:-8]) == sums[-1] else None
