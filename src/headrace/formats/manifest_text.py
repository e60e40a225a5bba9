"""A manifest's text as a JSON value, its longest columns read as a whole: without an object a shard.

The names and checksums of a million shards are 90 MB of text and three million strings; made one by one they take
seconds. Written as headrace writes them, they are cut out of the text, checked in every byte, and put in place of the
lists that they stand for. What is written in any other way, or is wrong, is left to the ordinary parser, which says so.
"""

from __future__ import annotations

import binascii
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from headrace.formats.columns import Digests, Strings

Bytes = npt.NDArray[np.uint8]

_QUOTE, _COMMA, _BACKSLASH, _SLASH, _FIRST, _LAST = (ord(char) for char in '",\\/ ~')
_MAX_NAME_BYTES = 256
_ROW_BYTES = 2 * Digests.BYTES + 3
_STEP = 1 << 13
_FILES, _BEHIND_FILES = b'"shards":{"file":["', b'"],"samples":['
_DIGESTS = ("xxh3_128", "index_xxh3_128")


def parse_manifest(data: bytes | memoryview) -> Any:
    """The JSON value of the text. Columns of shards may be `Strings` and `Digests`. Raises orjson.JSONDecodeError."""
    value = _parse_apart(bytes(data))
    return orjson.loads(data) if value is None else value


def _parse_apart(data: bytes) -> Any:
    """The value with its columns, or None where they are not as headrace writes them."""
    at = data.find(_FILES)
    names = _names(data, at + len(_FILES) - 1) if at >= 0 else None
    if names is None:
        return None
    columns: dict[str, Strings | Digests] = {"file": names[0]}
    spans = [(at + len(_FILES) - 1, names[1])]
    for name in _DIGESTS:
        opening = b'"%s":["' % name.encode()
        start = data.find(opening, spans[-1][1]) + len(opening) - 1
        column = _digests(data, start, len(names[0])) if start >= len(opening) else None
        if column is None:
            return None
        columns[name] = column
        spans.append((start, start + len(column) * _ROW_BYTES - 1))
    # What is cut out is marked, so that a column of the same name elsewhere is not taken for it.
    cuts = [0, *(place for span in spans for place in span), len(data)]
    parts = [data[first:last] for first, last in pairwise(cuts)][::2]
    marked = [piece for number, part in enumerate(parts) for piece in (part, b"%d" % number)][:-1]
    try:
        value = orjson.loads(b"".join(marked))
    except orjson.JSONDecodeError:  # which is to say where in the whole text
        return None
    shards = value.get("shards") if isinstance(value, dict) else None
    if not isinstance(shards, dict) or [shards.get(name) for name in columns] != [[k] for k in range(len(columns))]:
        return None
    shards.update(columns)
    return value


def _names(data: bytes, start: int) -> tuple[Strings, int] | None:
    """Names of files from `start` on, plain ones, each once, and where they end."""
    end = data.find(_BEHIND_FILES, start) + 1
    if end <= start:
        return None
    text = np.frombuffer(data, np.uint8, end - start, start)
    if text.min() < _FIRST or text.max() > _LAST or np.any((text == _BACKSLASH) | (text == _SLASH)):
        return None
    quotes = np.flatnonzero(text == _QUOTE)
    starts, ends = quotes[::2] + 1, quotes[1::2]
    if len(starts) != len(ends) or quotes[-1] != len(text) - 1:
        return None
    if np.any(starts[1:] - ends[:-1] != 3) or np.any(text[ends[:-1] + 1] != _COMMA):
        return None
    lengths = ends - starts
    if lengths.min() < 3 or lengths.max() > _MAX_NAME_BYTES:  # no "", "." or ".."
        return None
    rows = _rows(text, starts, lengths)
    words = rows.view(">u8").astype(np.uint64)
    # In alphabetical order, or numbered on from 999999 to 1000000: then no name is there twice.
    if not _ascend(words) and not _ascend(np.column_stack((lengths.astype(np.uint64), words))):
        return None
    return Strings(np.concatenate(([0], np.cumsum(lengths))), rows[rows != 0]), end


def _rows(text: Bytes, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Bytes:
    """The names one below the other, filled up with zeros to a multiple of 8."""
    width = -(-int(lengths.max()) // 8) * 8
    rows = np.zeros((len(starts), width), np.uint8)
    places = np.arange(width)
    for first in range(0, len(starts), _STEP):
        some = slice(first, first + _STEP)
        within = places < lengths[some, None]
        rows[some][within] = text[(starts[some, None] + places)[within]]
    return rows


def _ascend(rows: npt.NDArray[np.uint64]) -> bool:
    """Whether every row comes after the one before."""
    equal = np.ones(len(rows) - 1, bool)
    for column in rows.T:
        if np.any(equal & (column[:-1] > column[1:])):
            return False
        equal &= column[:-1] == column[1:]
    return not equal.any()


def _digests(data: bytes, start: int, count: int) -> Digests | None:
    """So many checksums of 32 lower-case hex digits each from `start` on, and then the end of their list."""
    end = start + count * _ROW_BYTES  # where the comma behind the last one would be
    if data[end - 1 : end] != b"]":
        return None
    rows = np.frombuffer(data, np.uint8, count * _ROW_BYTES, start).reshape(count, _ROW_BYTES)
    if np.any(rows[:, 0] != _QUOTE) or np.any(rows[:, -2] != _QUOTE) or np.any(rows[:-1, -1] != _COMMA):
        return None
    parts = []
    for first in range(0, count, _STEP):  # in parts that stay in a processor's cache
        digits = np.ascontiguousarray(rows[first : first + _STEP, 1:-2])
        if np.any(digits - np.uint8(ord("A")) < 6):  # A to F, in arithmetic modulo 256
            return None
        try:
            parts.append(binascii.unhexlify(digits.data))
        except binascii.Error:
            return None
    return Digests(b"".join(parts))
