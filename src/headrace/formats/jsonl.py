"""JSON lines: each line an object, whose members are the fields of a sample. Only read.

A member `__key__`, if there is one, is the key. Blank lines are passed over; a line that is no JSON object is a damaged
sample. JSON is what RFC 8259 says, so NaN is none; of members with the same name the last one counts. Whole numbers are
exact: one beyond 64 bits is damage, and those that a float would round make no member of floats. Packed files
(`.gz`, `.bz2`, `.xz`, `.zst`) are read as a whole, so they are for small data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import orjson
import xxhash

from headrace.formats.fields import Field
from headrace.formats.format import Format, Found, Listing, ScanOptions
from headrace.formats.records.index import RecordsIndex, RowsBuilder
from headrace.formats.records.lines import JSON_LINES, blocks, check_length, line_ends, shown, text_files
from headrace.formats.records.stream import ShardStream
from headrace.formats.shards import Shard
from headrace.storage import File

_KEY = "__key__"
_NONE = type(None)
_WIDE_PART = re.compile(rb"\d{16}")  # whole numbers of fewer digits are exact as floats
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_LONG_INT = re.compile(rb"(?<![\d.eE+-])-?\d{19,}(?![\d.eE])")
_MOST_DIGITS = 20  # of 64 bits, or 19 and a sign
# Kinds of whole numbers that are not all that int64 and float64 hold exactly.
_WIDE = "wide"  # a float64 would round it
_UNSIGNED = "unsigned"  # 2^63 or more
_Kind = type | str
_OF_TYPES: dict[frozenset[_Kind], Field] = {
    frozenset({int}): Field("int", "int64"),
    frozenset({_WIDE}): Field("int", "int64", wide=True),
    frozenset({int, _WIDE}): Field("int", "int64", wide=True),
    frozenset({float}): Field("float", "float64"),
    frozenset({int, float}): Field("float", "float64"),
    frozenset({str}): Field("str"),
    frozenset({bool}): Field("bool", "bool"),
    frozenset(): Field("null"),
}


class JsonlIndex(RecordsIndex):
    """The index of a file of JSON lines."""

    format: ClassVar[str] = "jsonl"

    def _prepare(self) -> None:
        self._floats = [name for name, field in self._reads_as.items() if field.type == "float"]

    def _decoded(self, i: int, record: memoryview) -> dict[str, Any]:
        value: dict[str, Any] = orjson.loads(record)
        value.pop(_KEY, None)
        for name in self._floats:
            if type(value.get(name)) is int:
                value[name] = float(value[name])
        return value


def join_fields(one: Field, other: Field) -> Field:
    """What holds for a member that is the one in some files and the other in others: numbers are floats unless that
    would round some, and what has no type in common is as each line has it."""
    if "null" in (one.type, other.type):
        return one.merged(other)
    kind = one if one.type == other.type else Field("json")
    is_wide = one.wide or other.wide
    if {one.type, other.type} == {"int", "float"} and not is_wide:
        kind = Field("float", "float64")
    is_nullable = one.nullable or other.nullable
    return Field(kind.type, kind.dtype, nullable=is_nullable, wide=is_wide and kind.type == "int")


def find_jsonl(listing: Listing, options: ScanOptions) -> Found | None:
    """The files of a folder named `.jsonl` and `.ndjson`, and those named `.json` whose first two lines are objects."""
    files = text_files(listing, JSON_LINES, ("json",), _is_jsonl)
    return Found(files) if files else None


def scan_jsonl(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[JsonlIndex, Shard]:
    """The index of a file of JSON lines, made in one pass over it, and its row.

    Raises DamagedError for packed files that are cut off, lines too long, and files of which hardly a line is right.
    """
    with ShardStream(file, options) as stream:
        scan = _Scan(stream, hints["file"], options.max_sample_bytes)
        scan.run()
        frames = stream.frames(len(scan.rows))
        index = JsonlIndex(stream.stored_bytes, scan.rows.rows(), scan.fields(), {}, frames)
        return index, index.row(stream.digest())


class _Scan:
    """One pass over a file: lines to records, and the types that their members have."""

    def __init__(self, stream: ShardStream, file: str, max_sample_bytes: int) -> None:
        self.rows = RowsBuilder(file, stream.name)
        self._stream, self._max = stream, max_sample_bytes
        self._types: dict[tuple[str, _Kind], None] = {}
        self._line = 0

    def run(self) -> None:
        """Scan the file to its end."""
        for base, block in blocks(self._stream, self._max):
            start = 0
            for end in line_ends(block).tolist():
                self._line += 1
                line = block[start:end]
                if not line.isspace():
                    self._take(base + start, line)
                start = end

    def fields(self) -> dict[str, Field]:
        """What the lines' members are."""
        types: dict[str, set[_Kind]] = {}
        for name, kind in self._types:
            types.setdefault(name, set()).add(kind)
        return {name: _field(kinds) for name, kinds in types.items() if name != _KEY}

    def _take(self, offset: int, line: bytes) -> None:
        check_length(self._stream.name, offset, len(line), self._max)
        key = None
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as err:
            where = f"at character {err.colno:,}"
            self.rows.mark(len(self.rows), f"line {self._line:,} is not JSON ({err.msg}, {where})")
        else:
            is_wide = _WIDE_PART.search(line) is not None
            number = _beyond_64_bits(line) if is_wide else None
            if number is None:
                key = self._look(value, _kind if is_wide else type)
            else:
                self.rows.mark(len(self.rows), f"line {self._line:,}: {number} is beyond 64 bits; write it as text")
        self.rows.add(offset, len(line), self._checksum(line), key)

    def _look(self, value: Any, kind_of: Callable[[Any], _Kind]) -> str | None:
        """Note the kinds of an object's members; its key, if it has one."""
        if not isinstance(value, dict):
            self.rows.mark(len(self.rows), f"line {self._line:,} must be a JSON object, got {shown(value)}")
            return None
        key = value.get(_KEY)
        if key is not None and not isinstance(key, str):
            self.rows.mark(len(self.rows), f"line {self._line:,}: {_KEY} must be a string, got {shown(key)}")
            return None
        self._types.update(dict.fromkeys(zip(value, map(kind_of, value.values()), strict=True)))
        return key

    def _checksum(self, line: bytes) -> int:
        return 0 if self._stream.codec else xxhash.xxh3_64_intdigest(line)


def _is_jsonl(head: bytes) -> bool:
    lines = [line for line in head.split(b"\n") if line.strip()]
    return len(lines) >= 2 and all(map(_is_object, lines[:2]))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False


def _kind(value: Any) -> _Kind:
    """The type of a value, but of whole numbers that float64 or int64 do not hold exactly."""
    if type(value) is not int:
        return type(value)
    return _UNSIGNED if value >= 2**63 else int if int(float(value)) == value else _WIDE


def _beyond_64_bits(line: bytes) -> str | None:
    """The first whole number of a line that no 64 bits hold, of which orjson makes a float."""
    for number in _LONG_INT.findall(_TEXT.sub(b'""', line)):
        if len(number) > _MOST_DIGITS or not -(2**63) <= int(number) < 2**64:
            return f"{number[:40].decode()}{'...' if len(number) > 40 else ''}"
    return None


def _field(kinds: set[_Kind]) -> Field:
    known = _OF_TYPES.get(frozenset(kinds - {_NONE}), Field("json"))
    return replace(known, nullable=_NONE in kinds)


JSONL = Format("jsonl", ".jsonl", find_jsonl, scan_jsonl, JsonlIndex.from_file, join=join_fields)
