"""Thrift's compact protocol, in which Parquet writes its footers and page headers.

A struct is read as a dict of its fields by number, whatever they mean. pyarrow reads footers too, but ends the process
on some that lie; so what comes from outside is read here, and pyarrow is given only what was checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
STOP = 0

Struct: TypeAlias = dict[int, Any]

_MAX_DEPTH = 24
_MAX_NUMBER_BITS = 64


class ThriftError(Exception):
    """It is not Thrift."""


class Reader:
    """Reads one struct after the other. Methods raise ThriftError for bytes that are not Thrift."""

    def __init__(self, data: memoryview, max_values: int) -> None:
        """At most `max_values` fields and items are read: a bound on time and memory."""
        self._data, self.at, self._left = data, 0, max_values
        self.spans: dict[int, tuple[int, int]] = {}
        """Where the fields of the outermost struct lie: (start, end)."""

    def struct(self, depth: int = 0) -> Struct:
        """A struct: its fields by number. Text and bytes are views of the data."""
        fields: Struct = {}
        number = 0
        while (head := self._byte()) != STOP:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            start = self.at
            fields[number] = self._value(head & 15, depth + 1)
            if not depth:
                self.spans[number] = start, self.at
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            raise ThriftError("more values than there can be")
        if kind in (I32, I64, I16):
            return self._zigzag()
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind == BINARY:
            return self._take(self._varint())
        if kind == STRUCT:
            return self.struct(depth)
        if kind in (LIST, SET):
            return self._list(depth)
        if kind == BYTE:
            return self._byte()
        if kind == DOUBLE:
            return self._take(8)
        raise ThriftError(f"a value of kind {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        length, kind = head >> 4 if head >> 4 < 15 else self._varint(), head & 15
        if kind in (TRUE, FALSE):
            kind = BYTE  # in a list each takes a byte
        return [self._value(kind, depth + 1) for _ in range(length)]

    def _take(self, length: int) -> memoryview:
        if length > len(self._data) - self.at:
            raise ThriftError("it ends within a value")
        self.at += length
        return self._data[self.at - length : self.at]

    def _byte(self) -> int:
        if self.at >= len(self._data):
            raise ThriftError("it ends within a value")
        self.at += 1
        return self._data[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while shift < _MAX_NUMBER_BITS:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ThriftError("a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def struct_bytes(fields: Mapping[int, tuple[int, Any]]) -> bytes:
    """A struct: by number, in rising order, each field's kind and value. A value of bytes goes in as it is, lists made
    by `list_bytes` and structs among them; of `BINARY` it gets its length in front."""
    parts, before = [], 0
    for number, (kind, value) in fields.items():
        parts.append(bytes([number - before << 4 | kind]) + _value_bytes(kind, value))
        before = number
    return b"".join(parts) + bytes([STOP])


def list_bytes(kind: int, values: list[Any]) -> bytes:
    """A list of values of one kind."""
    head = bytes([len(values) << 4 | kind]) if len(values) < 15 else bytes([0xF0 | kind]) + _varint_bytes(len(values))
    return head + b"".join(_value_bytes(kind, value) for value in values)


def _value_bytes(kind: int, value: Any) -> bytes:
    if kind in (I16, I32, I64):
        return _varint_bytes(value << 1 if value >= 0 else (-value << 1) - 1)
    return _varint_bytes(len(value)) + bytes(value) if kind == BINARY else bytes(value)


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))
