"""Text files of one record a line or more: where lines end, found for millions of them at numpy's speed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from headrace.errors import DamagedError
from headrace.formats.columns import I64
from headrace.formats.format import Listing
from headrace.formats.records.stream import ShardStream, content_head

TABLES = ("csv", "tsv")
JSON_LINES = ("jsonl", "ndjson")
TEXTS = (*TABLES, *JSON_LINES)
"""Extensions of all text formats."""

BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 4 << 20
_HEAD_BYTES = 256 << 10  # a zstd file shows nothing before its first block of 128 KiB is whole
_PACKED = re.compile(r"\.(?:gz|bz2|xz|zst|zstd)$")
# What people keep beside such files, without making the folder something else.
_BESIDE = re.compile(r"(?i)(?:readme|licen[cs]e|notice|citation|.*sums?)(?:\..*)?|.*\.(?:md|txt|rst|json|ya?ml|py)")


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


def text_files(
    listing: Listing,
    named: Sequence[str],
    maybe: Sequence[str] = (),
    is_one: Callable[[bytes], bool] = lambda head: False,
) -> list[str]:
    """The files of a folder that are of a text format, if there is nothing but them and what describes them.

    named: extensions, such as `csv`, whose files belong whatever they hold: one that is damaged is not to go missing.
    maybe: extensions whose files belong if their content shows it. Packed ones end in `.gz`, `.bz2`, `.xz` or `.zst`
    too. is_one: for a file's first lines, or the start of the first one if that is very long.

    Beside files that are named so there may be those of other text formats: then the folder holds several formats.
    """
    sure = {name for name in listing.names if _has_extension(name, named)}
    unsure = {name for name in listing.names if _has_extension(name, maybe)} - sure
    others = [name for name in listing.names if name not in sure | unsure and not _BESIDE.fullmatch(name)]
    if others and not (sure and all(_has_extension(name, TEXTS) for name in others)):
        return []
    return sorted(sure | {name for name in unsure if is_one(_head(listing, name))})


def _has_extension(name: str, extensions: Sequence[str]) -> bool:
    plain = _PACKED.sub("", name.lower())
    return any(plain.endswith(f".{extension}") for extension in extensions)


def _head(listing: Listing, name: str) -> bytes:
    head = content_head(listing.head(name, _HEAD_BYTES), _HEAD_BYTES).removeprefix(BOM)
    is_cut = listing.size(name) > _HEAD_BYTES or len(head) > _HEAD_BYTES - len(BOM)
    return head[: head.rfind(b"\n") + 1] or head if is_cut else head


def shown(value: Any, most: int = 40) -> str:
    """A value as it may stand in a message: its start, if it is long."""
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."
