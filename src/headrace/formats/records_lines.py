"""Text files of one record a line or more: where lines end, found for millions of them at numpy's speed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from headrace.errors import DamagedError
from headrace.formats.columns import I64
from headrace.formats.format import Listing
from headrace.formats.records_stream import ShardStream, unpacked_head

BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 4 << 20
_HEAD_BYTES = 256 << 10  # a zstd file shows nothing before its first block of 128 KiB is whole
_PACKED = r"(?:\.gz|\.zst|\.zstd)?"
# What people keep beside such files, without making the folder something else.
_BESIDE = re.compile(r"(?i)(?:readme|licen[cs]e|notice|citation|.*sums?)(?:\..*)?|.*\.(?:md|txt|rst|json|ya?ml|toml|py)")


def blocks(stream: ShardStream, max_record_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Runs of whole lines, each with its place: (offset, bytes). A mark of UTF-8 at the file's start is left out.

    Raises DamagedError for a line of more than `max_record_bytes`.
    """
    start, rest = 0, b""
    while chunk := stream.read(_BLOCK_BYTES):
        if stream.at == len(chunk) and chunk.startswith(BOM):
            start, chunk = len(BOM), chunk[len(BOM) :]
        end = chunk.rfind(b"\n") + 1
        if end:
            block = rest + chunk[:end]
            yield start, block
            start, rest = start + len(block), chunk[end:]
        else:
            rest += chunk
        check_length(stream.name, start, len(rest), max_record_bytes)
    if rest:
        yield start, rest


def line_ends(block: bytes) -> I64:
    """Where each line ends, behind its newline; the last one may have none."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    return ends if len(ends) and ends[-1] == len(block) else np.append(ends, len(block))


def check_length(name: str, offset: int, length: int, max_record_bytes: int) -> None:
    """Raises DamagedError for a record that is too long to be one."""
    if length > max_record_bytes:
        raise DamagedError(
            f"{name}: the record at byte {offset:,} is longer than max_sample_bytes={max_record_bytes:,}; if it is "
            "right, open the dataset with a larger max_sample_bytes"
        )


def text_files(listing: Listing, extensions: Sequence[str], is_one: Callable[[str, bytes], bool]) -> list[str]:
    """The files of a folder for which `is_one(name, head)` holds, if there is nothing but them and what describes them.

    `extensions` are those that may be looked at, such as `csv`; packed ones end in `.gz` or `.zst` too.
    """
    named = re.compile(rf"(?i).*\.(?:{'|'.join(extensions)}){_PACKED}")
    maybe = [name for name in listing.names if named.fullmatch(name)]
    if not all(name in maybe or _BESIDE.fullmatch(name) for name in listing.names):
        return []
    return [name for name in maybe if is_one(name, unpacked_head(listing.head(name, _HEAD_BYTES), _HEAD_BYTES))]


def whole_lines(head: bytes) -> list[bytes]:
    """The lines of a file's first bytes that are there to their ends, blank ones aside."""
    head = head.removeprefix(BOM)
    whole = head[: head.rfind(b"\n") + 1] if len(head) >= _HEAD_BYTES - len(BOM) else head
    return [line for line in whole.splitlines() if line.strip()]


def shown(value: Any, most: int = 40) -> str:
    """A value as it may stand in a message: its start, if it is long."""
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."
