"""Index files: columns of one length in an Arrow IPC file, with what belongs to the whole shard in the metadata.

An index is input like any other: it is validated in full when read, so that whatever a file says, the arrays that come
out are of the promised types and lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import ManifestError
from headrace.formats.columns import I64, Strings
from headrace.storage import quoted

INDEX_VERSION = "1"
_PREFIX = "headrace."


@dataclass(frozen=True, slots=True)
class Lists:
    """A column of lists: row i holds values[starts[i]:starts[i + 1]]."""

    starts: I64
    values: npt.NDArray[Any]


Column = npt.NDArray[Any] | Strings | Lists

_TYPES = {
    "text": pa.large_string(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "int64s": pa.large_list(pa.int64()),
}


def index_to_bytes(format_name: str, columns: Mapping[str, Column], facts: Mapping[str, str]) -> bytes:
    """The content of an index file; `facts` are what holds for the whole shard."""
    arrays = {name: _to_arrow(column) for name, column in columns.items()}
    metadata = {_PREFIX + name: value for name, value in facts.items()}
    metadata |= {_PREFIX + "format": format_name, _PREFIX + "version": INDEX_VERSION}
    fields = [pa.field(name, array.type, nullable=False) for name, array in arrays.items()]
    schema = pa.schema(fields, metadata=metadata)
    batch = pa.record_batch(list(arrays.values()), schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


class IndexFile:
    """The validated content of an index file. Its readers raise ManifestError."""

    def __init__(self, data: bytes | memoryview, name: str, format_name: str, types: Sequence[tuple[str, str]]) -> None:
        """`types` are the columns to be there, by name, each one of text, int64, uint64, int64s."""
        self._name = name
        try:
            with pa.ipc.open_file(pa.py_buffer(data)) as reader:
                schema = reader.schema
                batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError, ValueError) as err:
            raise self.error(f"is not a readable Arrow file ({' '.join(str(err).split())})") from err
        self._facts = {
            key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for key, value in (schema.metadata or {}).items()
        }
        for fact, expected in (("format", format_name), ("version", INDEX_VERSION)):
            if self.fact(fact) != expected:
                raise self.error(f"has {fact} {self.fact(fact)!r}, not {expected!r}")
        wanted = pa.schema([pa.field(column, _TYPES[kind], nullable=False) for column, kind in types])
        if not schema.equals(wanted) or len(batches) != 1:
            raise self.error("does not have the columns of an index")
        self._batch = batches[0]
        self._validate()

    @property
    def num_rows(self) -> int:
        """Length of every column."""
        return int(self._batch.num_rows)

    def error(self, what: str) -> ManifestError:
        """An error about this file."""
        return ManifestError(
            f"the index {quoted(self._name)} {what}: restore it, or delete {quoted('headrace.json')} and index again"
        )

    def fact(self, name: str, default: str | None = None) -> str:
        """What holds for the whole shard; `default` is for facts that not every index has."""
        value = self._facts.get(_PREFIX + name, default)
        if value is None:
            raise self.error(f"does not say its {name}")
        return str(value)

    def numbers(self, column: str) -> npt.NDArray[Any]:
        """A column of numbers, copied out of the file."""
        return _numbers(self._batch.column(column)).copy()

    def strings(self, column: str) -> Strings:
        """A column of strings, copied out of the file."""
        array = self._batch.column(column)
        if not len(array):
            return Strings.of([])
        _, offsets, text = array.buffers()
        starts = np.frombuffer(offsets, np.int64, array.offset + len(array) + 1)[array.offset :]
        text = np.frombuffer(text, np.uint8) if text is not None else np.zeros(0, np.uint8)
        return Strings(starts - starts[0], text[starts[0] : starts[-1]].copy())

    def lists(self, column: str) -> Lists:
        """A column of lists of numbers, copied out of the file."""
        array = self._batch.column(column)
        if not len(array):
            return Lists(np.zeros(1, np.int64), np.zeros(0, np.int64))
        starts, values = _numbers(array.offsets), _numbers(array.values)
        return Lists(starts - starts[0], values[starts[0] : starts[-1]].copy())

    def _validate(self) -> None:
        try:
            self._batch.validate(full=True)
        except pa.ArrowException as err:
            raise self.error(f"is damaged ({' '.join(str(err).split())})") from err
        if any(column.null_count for column in self._batch.columns):
            raise self.error("has empty cells")


# Arrow's own conversions to and from numpy import pandas where it is installed, which takes a second: buffers do not.


def _to_arrow(column: Column) -> pa.Array:
    if isinstance(column, Strings):
        buffers = [None, pa.py_buffer(column.starts), pa.py_buffer(column.text)]
        return pa.Array.from_buffers(pa.large_string(), len(column), buffers)
    if isinstance(column, Lists):
        return pa.LargeListArray.from_arrays(_to_arrow(column.starts), _to_arrow(column.values))
    type_ = pa.from_numpy_dtype(column.dtype)
    return pa.Array.from_buffers(type_, len(column), [None, pa.py_buffer(np.ascontiguousarray(column))])


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    """The numbers of a column without empty cells, as a view."""
    dtype = np.dtype(str(array.type))
    if not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
