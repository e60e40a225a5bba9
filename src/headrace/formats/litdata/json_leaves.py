"""LitData's own encoding of lists and objects: a tag, then what it says. JSON text, of older releases, is read too.

Bounded and total: whatever the bytes are, the result is a value or a ValueError, and every element takes at least a
byte of what was read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

_TEXT_FROM = 0x20
"""A first byte above this is JSON text."""
_DEEPEST = 100

_JSON, _STRS, _INTS, _FLOATS, _BOOLS, _DICT, _ROWS, _STR, _INT, _FLOAT, _BOOL, _NONE = range(12)
_CELL = 0x10  # what is added to the tags of cells in rows: none, str, int, float, bool
_CELLS = (_NONE, _STR, _INT, _FLOAT, _BOOL)


def read_json(data: memoryview) -> Any:
    """The value of a leaf. Raises ValueError if it is malformed."""
    if not len(data) or data[0] > _TEXT_FROM:
        return orjson.loads(data)
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise ValueError(f"a value of {reader.at:,} bytes in {len(data):,}")
    return value


class _Reader:
    """A place in the bytes that goes forward."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0
        self._simple: dict[int, Callable[[], Any]] = {
            _STR: self._text,
            _INT: lambda: self._unpacked("<q"),
            _FLOAT: lambda: self._unpacked("<d"),
            _BOOL: lambda: self._unpacked("<?"),
            _NONE: lambda: None,
            _JSON: lambda: orjson.loads(self._run(self._count())),
            _STRS: lambda: [self._text() for _ in range(self._count(4))],
            _INTS: lambda: np.frombuffer(self._run(8 * self._count(8)), "<i8").tolist(),
            _FLOATS: lambda: np.frombuffer(self._run(8 * self._count(8)), "<f8").tolist(),
            _BOOLS: lambda: [byte != 0 for byte in self._run(self._count())],
            _ROWS: self._rows,
        }

    def value(self, depth: int) -> Any:
        """The value that begins here."""
        tag = self._run(1)[0]
        if tag == _DICT:
            if depth > _DEEPEST:
                raise ValueError(f"more than {_DEEPEST} objects in one another")
            return {self._text(): self.value(depth + 1) for _ in range(self._count(5))}
        if tag not in self._simple:
            raise ValueError(f"a value of the unknown kind {tag}")
        return self._simple[tag]()

    def _rows(self) -> list[dict[str, Any]]:
        num_rows, num_names = self._unpacked("<I"), self._count(4)
        names = [self._text() for _ in range(num_names)]
        if not names or num_rows * num_names > len(self._data) - self.at:
            raise ValueError(f"{num_rows:,} rows of {num_names:,} cells that reach behind the end")
        return [{name: self._cell() for name in names} for _ in range(num_rows)]

    def _cell(self) -> Any:
        kind = self._run(1)[0] - _CELL
        if not 0 <= kind < len(_CELLS):
            raise ValueError(f"a cell of the unknown kind {kind + _CELL}")
        return self._simple[_CELLS[kind]]()

    def _text(self) -> str:
        return str(self._run(self._count()), "utf-8")

    def _count(self, least_bytes: int = 1) -> int:
        """A count of elements that take at least so many bytes each."""
        count = int(self._unpacked("<I"))
        if count * least_bytes > len(self._data) - self.at:
            raise ValueError(f"{count:,} elements that reach behind the end")
        return count

    def _unpacked(self, form: str) -> Any:
        return struct.unpack(form, self._run(struct.calcsize(form)))[0]

    def _run(self, num_bytes: int) -> memoryview:
        start = self.at
        self.at += num_bytes
        if self.at > len(self._data):
            raise ValueError("it reaches behind its end")
        return self._data[start : self.at]
