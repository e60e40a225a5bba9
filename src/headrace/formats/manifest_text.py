"""A manifest's text as a JSON value, its longest columns read as a whole: without an object a shard.

The names and checksums of a million shards are 90 MB of text and three million strings; made one by one they take
seconds. Written as headrace writes them, they are cut out of the text, checked in every byte, and put in place of the
lists that they stand for. What is written in any other way, or is wrong, is left to the ordinary parser, which says so.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from headrace.formats.columns import Digests, Strings

Bytes = npt.NDArray[np.uint8]

_QUOTE, _COMMA, _BACKSLASH, _SLASH, _FIRST, _LAST = (ord(char) for char in '",\\/ ~')
_MAX_NAME_BYTES = 256
_DIGITS = 2 * Digests.BYTES


def parse_manifest(data: bytes | memoryview) -> Any:
    """The JSON value of the text. Columns of shards may be `Strings` and `Digests`. Raises orjson.JSONDecodeError."""
    value = _parse_apart(bytes(data))
    return orjson.loads(data) if value is None else value


def _parse_apart(data: bytes) -> Any:
    """The value with its columns, or None where they are not as headrace writes them."""
    spans: list[tuple[int, int]] = []
    columns: dict[str, Strings | Digests] = {}
    at = max(0, data.find(b'"shards":{'))
    for name, read in _COLUMNS.items():
        start = data.find(b'"%s":["' % name.encode(), at) + len(name) + 4
        end = data.find(b'"]', start) + 1
        column = read(np.frombuffer(data, np.uint8, end - start, start)) if at < start < end else None
        if column is None:
            return None
        columns[name], at = column, end
        spans.append((start, end))
    # What is cut out is marked, so that a column of the same name elsewhere is not taken for it.
    cuts = [0, *(place for span in spans for place in span), len(data)]
    parts = [data[first:last] for first, last in pairwise(cuts)][::2]
    marked = [part for number, part in enumerate(parts) for part in (part, b"%d" % number)][:-1]
    value = orjson.loads(b"".join(marked))
    shards = value.get("shards") if isinstance(value, dict) else None
    if not isinstance(shards, dict) or [shards.get(name) for name in columns] != [[k] for k in range(len(columns))]:
        return None
    shards.update(columns)
    return value


def _names(text: Bytes) -> Strings | None:
    """Names of files: plain ones, each once."""
    if text.min() < _FIRST or text.max() > _LAST or np.any((text == _BACKSLASH) | (text == _SLASH)):
        return None
    quotes = np.flatnonzero(text == _QUOTE)
    starts, ends = quotes[::2] + 1, quotes[1::2]
    if len(starts) != len(ends) or quotes[0] != 0 or quotes[-1] != len(text) - 1:
        return None
    if np.any(starts[1:] - ends[:-1] != 3) or np.any(text[ends[:-1] + 1] != _COMMA):
        return None
    lengths = ends - starts
    if lengths.min() < 3 or lengths.max() > _MAX_NAME_BYTES:  # no "", "." or ".."
        return None
    rows = _rows(text, starts, lengths)
    return Strings(np.concatenate(([0], np.cumsum(lengths))), rows[rows != 0]) if _ascend(rows) else None


def _rows(text: Bytes, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Bytes:
    """The names one below the other, filled up with zeros to a multiple of 8."""
    width = -(-int(lengths.max()) // 8) * 8
    rows = np.zeros((len(starts), width), np.uint8)
    if lengths.min() == (length := int(lengths.max())):
        apart = np.append(text, np.uint8(_COMMA)).reshape(len(starts), length + 3)
        rows[:, :length] = apart[:, 1 : length + 1]
        return rows
    places = np.arange(width)
    step = max(1, (1 << 24) // width)
    for first in range(0, len(starts), step):  # in parts, for the sake of memory
        some = slice(first, first + step)
        within = places < lengths[some, None]
        rows[some][within] = text[(starts[some, None] + places)[within]]
    return rows


def _ascend(rows: Bytes) -> bool:
    """Whether every row comes after the one before, so that none is there twice."""
    words = rows.view(">u8").astype(np.uint64)
    before, equal = words[:-1], np.ones(len(words) - 1, bool)
    for column in range(words.shape[1]):
        if np.any(equal & (before[:, column] > words[1:, column])):
            return False
        equal &= before[:, column] == words[1:, column]
    return not equal.any()


def _digests(text: Bytes) -> Digests | None:
    """Checksums of 32 lower-case hex digits each."""
    width = _DIGITS + 3
    if (len(text) + 1) % width:
        return None
    rows = np.append(text, np.uint8(_COMMA)).reshape(-1, width)
    frame = rows[:, [0, width - 2, width - 1]]
    digits = np.ascontiguousarray(rows[:, 1 : _DIGITS + 1])
    if np.any(frame != (_QUOTE, _QUOTE, _COMMA)) or np.any(digits - np.uint8(ord("A")) < 6):
        return None
    try:
        return Digests(binascii.unhexlify(digits.data))
    except binascii.Error:
        return None


_COLUMNS: dict[str, Callable[[Bytes], Strings | Digests | None]] = {
    "file": _names,
    "xxh3_128": _digests,
    "index_xxh3_128": _digests,
}
"""In the order in which they are written."""
