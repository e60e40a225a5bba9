"""The columns of a Parquet file, and the small footers by which pyarrow is told where one row group's chunks lie."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import DamagedError, DatasetError
from headrace.formats.parquet.pages import Leaf
from headrace.formats.parquet.thrift import BINARY, I32, I64, LIST, STRUCT, Reader, Struct, list_bytes, struct_bytes

ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, MemoryError, OverflowError, RuntimeError)
"""What pyarrow raises of content that it cannot make sense of."""

_MAX_VALUES = 5_000_000
_MAX_DEPTH = 64
_REPEATED = 2
_VALUE_BYTES = {0: 1, 1: 4, 2: 8, 3: 8, 4: 4, 5: 8}  # bool, int32, int64, int96, float, double
_BYTES, _FIXED_BYTES = 6, 7
_TEXT_BYTES = 48  # of a time or a decimal as text
_CONVERTED_TO_TEXT = range(5, 11)  # decimal, date, time, timestamp in the types of old, and of today:
_LOGICALLY_TEXT = range(5, 9)


class Column(NamedTuple):
    """One column as users see it, made of one or several leaves."""

    name: str
    field: pa.Field
    leaves: range
    """Numbers of its leaves among those of the file."""

    @property
    def type(self) -> pa.DataType:
        """Its Arrow type."""
        return self.field.type


class FileSchema:
    """The columns of a file. Safe to share by threads."""

    def __init__(self, data: bytes, arrow: bytes, created_by: bytes) -> None:
        """`data` is the schema as it lies in the footer, a Thrift list; `arrow` what Arrow notes of its own types, and
        `created_by` the name of the writer, by which pyarrow knows the faults of old ones.

        Raises ThriftError, KeyError, TypeError or ValueError for data that is no schema, DamagedError or DatasetError
        for one that does not do.
        """
        self.data, self.arrow, self.created_by = data, arrow, created_by
        elements = iter(Reader(memoryview(b"\x19" + data + b"\0"), _MAX_VALUES).struct()[1])
        self.leaves = tuple(_leaves_of(elements, next(elements, {}), (), False))
        self._noted = arrow
        self._schema = self._read_schema()
        self.columns = {column.name: column for column in self._columns()}
        if any(_has_fixed_sizes(field.type) for field in self._schema):
            # A list of fixed size takes its room even where it is None, whatever size a few bytes claim.
            fields = [field.with_type(_of_any_size(field.type)).remove_metadata() for field in self._schema]
            self._noted = base64.b64encode(pa.schema(fields).serialize().to_pybytes())

    def __reduce__(self) -> tuple[Any, ...]:
        return FileSchema, (self.data, self.arrow, self.created_by)

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about, in bytes."""
        return len(self.data) + len(self.arrow) + 1024 * len(self.leaves)

    def footer(self, num_rows: int, chunks: Sequence[tuple[int, int, int, int]]) -> pq.FileMetaData:
        """The footer of a file with one row group: (offset, bytes, values, codec) of each leaf's chunk."""
        columns = [_column_bytes(leaf, *chunk) for leaf, chunk in zip(self.leaves, chunks, strict=True)]
        group = struct_bytes({1: (LIST, list_bytes(STRUCT, columns)), 2: (I64, 0), 3: (I64, num_rows)})
        return self._parsed(num_rows, [group])

    def _read_schema(self) -> pa.Schema:
        try:
            return pq.ParquetFile(pa.BufferReader(b""), metadata=self._parsed(0, [])).schema_arrow
        except NotImplementedError as err:
            raise DatasetError(f"it has a column that is not read: {one_line(err)}") from err
        except ARROW_ERRORS as err:
            raise DamagedError(f"its schema is malformed ({one_line(err)})") from err

    def _parsed(self, num_rows: int, groups: list[bytes]) -> pq.FileMetaData:
        fields = {1: (I32, 2), 2: (LIST, self.data), 3: (I64, num_rows), 4: (LIST, list_bytes(STRUCT, groups))}
        if self._noted:
            fact = struct_bytes({1: (BINARY, b"ARROW:schema"), 2: (BINARY, self._noted)})
            fields[5] = (LIST, list_bytes(STRUCT, [fact]))
        fields[6] = (BINARY, self.created_by)
        footer = struct_bytes(fields)
        return pq.read_metadata(pa.BufferReader(b"".join((b"PAR1", footer, struct.pack("<I", len(footer)), b"PAR1"))))

    def _columns(self) -> Iterator[Column]:
        first, names = 0, self._schema.names
        for field in self._schema:
            last = first + _num_leaves(field.type)
            yield Column(field.name, field, range(first, last))
            first = last
        if first != len(self.leaves):
            raise DamagedError(f"its schema has {len(self.leaves)} columns of values, its Arrow schema {first}")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DatasetError(f"it has two columns of the name {twice!r}; rename one of them")


def one_line(err: BaseException) -> str:
    """What an error says, on one line, not too long."""
    text = " ".join(str(err).split()) or type(err).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def _leaves_of(
    elements: Iterator[Struct], element: Struct, path: tuple[bytes, ...], is_repeated: bool
) -> Iterator[Leaf]:
    """The leaves below an element; its children follow it, each with its own behind it."""
    num_children = element.get(5) or 0
    if len(path) > _MAX_DEPTH:
        raise ValueError(f"columns more than {_MAX_DEPTH} deep")
    if not num_children and path:
        yield Leaf(tuple(map(bytes, path)), element[1], _value_bytes(element), is_repeated)
    for _ in range(num_children):
        child = next(elements, None)
        if child is None:
            raise ValueError("columns are missing")
        yield from _leaves_of(elements, child, (*path, child[4]), is_repeated or child.get(3) == _REPEATED)


def _value_bytes(element: Struct) -> int | None:
    """Memory of one value, unpacked; None if each has a length of its own."""
    meaning = element.get(10) or {}
    if element.get(6) in _CONVERTED_TO_TEXT or any(number in _LOGICALLY_TEXT for number in meaning):
        return _TEXT_BYTES
    kind = element[1]
    if kind == _FIXED_BYTES:
        return max(4, int(element.get(2, 0)))
    return None if kind == _BYTES else _VALUE_BYTES[kind]


def _column_bytes(leaf: Leaf, offset: int, num_bytes: int, num_values: int, codec: int) -> bytes:
    facts = struct_bytes(
        {
            1: (I32, leaf.kind),
            2: (LIST, list_bytes(I32, [])),
            3: (LIST, list_bytes(BINARY, list(leaf.names))),
            4: (I32, codec),
            5: (I64, num_values),
            6: (I64, num_bytes),
            7: (I64, num_bytes),
            9: (I64, offset),
        }
    )
    return struct_bytes({2: (I64, offset), 3: (STRUCT, facts)})


def _num_leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _num_leaves(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _num_leaves(kind.value_type)
    if pa.types.is_nested(kind):
        return sum(_num_leaves(kind.field(number).type) for number in range(kind.num_fields))
    return 1


def _has_fixed_sizes(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_fixed_sizes(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        return True
    return bool(pa.types.is_nested(kind)) and any(_has_fixed_sizes(kind.field(n).type) for n in range(kind.num_fields))


def _of_any_size(kind: pa.DataType) -> pa.DataType:
    """A type with lists of any size in place of those of fixed size."""
    if not _has_fixed_sizes(kind):
        return kind
    if isinstance(kind, pa.BaseExtensionType):
        return _of_any_size(kind.storage_type)
    if pa.types.is_map(kind):
        return pa.map_(_of_any_size(kind.key_type), kind.item_field.with_type(_of_any_size(kind.item_type)))
    inner = [kind.field(n).with_type(_of_any_size(kind.field(n).type)) for n in range(kind.num_fields)]
    if pa.types.is_struct(kind):
        return pa.struct(inner)
    return pa.large_list(inner[0]) if pa.types.is_large_list(kind) else pa.list_(inner[0])
