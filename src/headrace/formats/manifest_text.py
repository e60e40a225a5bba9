"""A manifest's text as a JSON value, its longest columns read as a whole: without an object a shard.

The names and numbers of a million shards are three million values; made one by one they take a second. Written as
headrace writes them, they are cut out of the text, checked in every byte, and put in place of the lists that they stand
for. What is written in any other way, or is wrong, is left to the ordinary parser, which says what is wrong. Checksums
of so many shards are one string a column already (`Digests.to_json`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from headrace.formats.checking import MAX_INTEGER
from headrace.formats.columns import I64, Strings

Bytes = npt.NDArray[np.uint8]
Column = Strings | I64

_QUOTE, _COMMA, _BACKSLASH, _SLASH, _FIRST, _LAST, _ZERO = (ord(char) for char in '",\\/ ~0')
_FILES, _BEHIND_FILES = b'"shards":{"file":[', b'"],"samples":['
_MAX_NAME_BYTES, _MAX_DIGITS = 256, 18
_STEP = 1 << 13
"""Rows that are looked at in one go: few enough that they stay in a processor's cache."""


def parse_manifest(data: bytes | memoryview) -> Any:
    """The JSON value of the text. Shards' columns may be `Strings`, `Digests` and arrays instead of lists.

    Raises orjson.JSONDecodeError.
    """
    value = _parse_apart(bytes(data))
    return orjson.loads(data) if value is None else value


def _parse_apart(data: bytes) -> Any:
    """The value with its columns, or None where they are not as headrace writes them."""
    start = data.find(_FILES) + len(_FILES)
    end = data.find(_BEHIND_FILES, start) + 1
    names = _names(data, start, end) if len(_FILES) <= start < end else None
    if names is None:
        return None
    columns: dict[str, Column] = {"file": names}
    cuts = [0, start, end]
    for name in ("samples", "bytes"):
        opening = b'],"%s":[' % name.encode()
        found = _counts(data, end + len(opening), len(names)) if data.startswith(opening, end) else None
        if found is None:
            return None
        columns[name], start, end = found[0], end + len(opening), found[1]
        cuts += (start, end)
    # What is cut out is marked, so that a column of the same name elsewhere is not taken for it.
    parts = [data[first:last] for first, last in pairwise([*cuts, len(data)])][::2]
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


def _names(data: bytes, start: int, end: int) -> Strings | None:
    """The names of files, plain ones, each once."""
    width = data.find(b'"', start + 1) - start + 2  # of the first name with its quotes and a comma
    count, rest = divmod(end - start + 1, width)
    names = _even_names(data, start, count, width) if not rest and 6 <= width <= _MAX_NAME_BYTES else None
    return names or _uneven_names(np.frombuffer(data, np.uint8, end - start, start))


def _even_names(data: bytes, start: int, count: int, width: int) -> Strings | None:
    """So many names of one length: `width` with quotes and comma."""
    rows = np.frombuffer(data, np.uint8, count * width, start).reshape(count, width)
    text = np.empty((count, width - 3), np.uint8)
    last: Bytes | None = None
    for first in range(0, count, _STEP):
        some = rows[first : first + _STEP]
        if not _are_framed(some, first + _STEP >= count):
            return None
        names = text[first : first + _STEP]
        names[:] = some[:, 1:-2]
        if not _are_plain(names) or np.any(names == _QUOTE):
            return None
        ordered = names if last is None else np.concatenate((last, names))
        if not _ascend(_words(ordered)):
            return None
        last = names[-1:]
    return Strings(np.arange(0, (count + 1) * (width - 3), width - 3, dtype=np.int64), text.reshape(-1))


def _uneven_names(text: Bytes) -> Strings | None:
    """Names of any length, with their quotes and commas."""
    if not _are_plain(text):
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
    words = _words(rows)
    # In alphabetical order, or numbered on from 999999 to 1000000: then no name is there twice.
    if not _ascend(words) and not _ascend(np.column_stack((lengths.astype(np.uint64), words))):
        return None
    return Strings(np.concatenate(([0], np.cumsum(lengths))), rows[rows != 0])


def _rows(text: Bytes, starts: I64, lengths: I64) -> Bytes:
    """The names one below the other, filled up with zeros."""
    rows = np.zeros((len(starts), int(lengths.max())), np.uint8)
    places = np.arange(rows.shape[1])
    for first in range(0, len(starts), _STEP):
        some = slice(first, first + _STEP)
        within = places < lengths[some, None]
        rows[some][within] = text[(starts[some, None] + places)[within]]
    return rows


def _are_plain(text: Bytes) -> bool:
    """Whether these are printable ASCII, without what may lead out of a folder or stand for something else."""
    return bool(text.min() >= _FIRST and text.max() <= _LAST and not np.any((text == _BACKSLASH) | (text == _SLASH)))


def _words(rows: Bytes) -> npt.NDArray[np.uint64]:
    """Rows as numbers that compare as they do."""
    padded = np.zeros((len(rows), -(-rows.shape[1] // 8) * 8), np.uint8)
    padded[:, : rows.shape[1]] = rows
    return padded.view(">u8").astype(np.uint64)


def _ascend(rows: npt.NDArray[np.uint64]) -> bool:
    """Whether every row comes after the one before."""
    equal = np.ones(len(rows) - 1, bool)
    for column in rows.T:
        if np.any(equal & (column[:-1] > column[1:])):
            return False
        equal &= column[:-1] == column[1:]
    return not equal.any()


def _are_framed(rows: Bytes, is_end: bool) -> bool:
    """Whether all rows begin with a quote and end with a quote and a comma; the very last has no comma."""
    commas = rows[:-1, -1] if is_end else rows[:, -1]
    return bool(np.all(rows[:, 0] == _QUOTE) and np.all(rows[:, -2] == _QUOTE) and np.all(commas == _COMMA))


def _counts(data: bytes, start: int, count: int) -> tuple[I64, int] | None:
    """So many whole numbers from `start` on, and where they end."""
    end = data.find(b"]", start)
    text = np.frombuffer(data, np.uint8, max(0, end - start), start)
    commas = text == _COMMA
    places = np.flatnonzero(commas)
    if len(places) != count - 1 or not np.all((text - np.uint8(_ZERO) < 10) | commas):
        return None
    starts = np.concatenate(([0], places + 1))
    lengths = np.append(places, len(text)) - starts
    if lengths.min() < 1 or lengths.max() > _MAX_DIGITS or np.any((text[starts] == _ZERO) & (lengths > 1)):
        return None
    numbers = np.fromstring(data[start:end].decode(), np.int64, sep=",")
    return (numbers, end) if int(numbers.max()) <= MAX_INTEGER // count else None  # then the sum is a number too
