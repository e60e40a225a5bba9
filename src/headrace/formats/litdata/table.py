"""LitData rows kept as Arrow record batches behind a chunk's offsets, which then lead nowhere.

Newer releases write samples so that are dicts of plain values:

    u32 n | u32 offsets[n + 1], all alike | Arrow IPC, file or stream | u32 its length | b"LDARW01\\0"

Each record batch is a frame: it is read, verified and unpacked as a whole, whatever else is in the file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from headrace.formats.fields import Field
from headrace.formats.index import Opened
from headrace.formats.records.frames import Frames

MAGIC = b"LDARW01\0"
KEY = "__key__"
_FILE_MAGIC = b"ARROW1\0\0"
_FAILURES = (pa.ArrowException, OSError, struct.error, LookupError, UnicodeDecodeError)


class TableError(ValueError):
    """Bytes that are no Arrow record batches, or such as are not read."""


class OpenedTable(Opened):
    """Samples out of record batches."""

    def __init__(self, key: Callable[[int], str], batches: Mapping[int, pa.RecordBatch], frames: Frames) -> None:
        """`key` gives the key of a sample; the batches are by the numbers of their frames."""
        self.damage = {}
        self.num_bytes = sum(batch.nbytes for batch in batches.values())
        self._key, self._frames = key, frames
        self._columns = {
            k: [(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True) if name != KEY]
            for k, batch in batches.items()
        }

    def sample(self, i: int) -> dict[str, Any]:
        frame = self._frames.frame_of(i)
        row = i - self._frames.starts[frame]
        return {KEY: self._key(i)} | {name: column[row].as_py() for name, column in self._columns[frame]}


class Batches:
    """The record batches of a chunk, read forward out of `stored`, a file-like object that is at their beginning."""

    def __init__(self, stored: Any, max_unpacked_bytes: int) -> None:
        """Raises TableError if there is no schema, or one that is not read."""
        self._tee = _Tee(stored)
        self._most = max_unpacked_bytes
        self._source = pa.PythonFile(self._tee, mode="r")
        self.schema = self._read_schema()

    def __iter__(self) -> Iterator[tuple[int, bytes, pa.RecordBatch, int]]:
        """Each record batch: where it begins, counted from the first byte of all, its bytes in the file, itself, and
        what it takes unpacked. Raises TableError."""
        while (message := self._next()) is not None:
            size = self._check_size(message)
            batch = read_batch(message, self.schema)
            data = self._tee.taken()
            yield self._tee.at - len(data), data, batch, size

    def _read_schema(self) -> pa.Schema:
        start = self._tee.read(len(_FILE_MAGIC))
        if start != _FILE_MAGIC:
            self._tee.unread(start)
        message = self._next()
        if message is None or message.type != "schema":
            raise TableError("it does not begin with a schema")
        self._tee.taken()
        return read_schema(message)

    def _next(self) -> pa.Message | None:
        try:
            return pa.ipc.read_message(self._source)
        except EOFError:
            return None
        except _FAILURES as err:
            raise TableError(_shown(err)) from err

    def _check_size(self, message: pa.Message) -> int:
        if message.type != "record batch":
            raise TableError(f"it has a {message.type}, which is not read")
        try:
            size = _unpacked_bytes(message.metadata, memoryview(message.body))
        except _FAILURES as err:
            raise TableError(_shown(err)) from err
        if size > self._most:
            raise TableError(
                f"a run of samples unpacks to {size:,} bytes, more than max_sample_bytes={self._most:,}; if it is "
                "right, open the dataset with a larger max_sample_bytes"
            )
        return size


def read_schema(source: Any) -> pa.Schema:
    """A schema out of a message or its bytes. Raises TableError."""
    try:
        schema = pa.ipc.read_schema(source if isinstance(source, pa.Message) else pa.py_buffer(source))
        for column in schema:
            _check_names(column)
    except _FAILURES as err:
        raise TableError(_shown(err)) from err
    if len(set(schema.names)) != len(schema.names):
        raise TableError("two columns have one name")
    return schema


def read_batch(source: Any, schema: pa.Schema) -> pa.RecordBatch:
    """A record batch out of a message or its bytes, checked in full. Raises TableError."""
    try:
        message = source if isinstance(source, pa.Message) else pa.ipc.read_message(pa.py_buffer(source))
        batch = pa.ipc.read_record_batch(message, schema)
        batch.validate(full=True)
    except (*_FAILURES, EOFError) as err:
        raise TableError(_shown(err)) from err
    return batch


def table_fields(schema: pa.Schema) -> dict[str, Field]:
    """What the columns are, `__key__` aside."""
    return {column.name: _field(column.type) for column in schema if column.name != KEY}


def _check_names(column: pa.Field) -> None:
    """Look at the names of a column and of what is in it: one that is not UTF-8 raises UnicodeDecodeError only then."""
    _ = column.name
    for k in range(column.type.num_fields):
        _check_names(column.type.field(k))


def _field(kind: pa.DataType) -> Field:
    types = pa.types
    if types.is_boolean(kind):
        return Field("bool", "bool")
    if types.is_integer(kind):
        return Field("int", "int64")
    if types.is_floating(kind):
        return Field("float", "float64")
    if types.is_string(kind) or types.is_large_string(kind):
        return Field("str")
    if types.is_binary(kind) or types.is_large_binary(kind):
        return Field("bytes")
    return Field("null", nullable=True) if types.is_null(kind) else Field("json")


class _Tee:
    """A file read forward, which keeps what has been read since it was last asked."""

    closed = False

    def __init__(self, stored: Any) -> None:
        self._stored, self._kept, self._ahead = stored, bytearray(), b""
        self.at = 0

    def read(self, num_bytes: int) -> bytes:
        if num_bytes < 0:
            raise TableError("a message of a length below zero")
        ahead, self._ahead = self._ahead[:num_bytes], self._ahead[num_bytes:]
        data = ahead + bytes(self._stored.read(num_bytes - len(ahead)))
        self._kept += data
        self.at += len(data)
        return data

    def unread(self, data: bytes) -> None:
        """Give back what was read last."""
        self._ahead = data
        self.at -= len(data)
        del self._kept[len(self._kept) - len(data) :]

    def taken(self) -> bytes:
        """What has been read since this was last called."""
        data = bytes(self._kept)
        self._kept.clear()
        return data

    def close(self) -> None:
        """The file is someone else's."""


def _unpacked_bytes(metadata: Any, body: memoryview) -> int:
    """What a record batch's buffers take when they are unpacked.

    Packed ones begin with that as a number, for which Arrow takes memory at once: it is looked at beforehand. The
    metadata is a flatbuffer, Message.header (field 2) being a RecordBatch with buffers (2) and compression (3).
    """
    data = memoryview(metadata)
    message = struct.unpack_from("<I", data)[0]
    batch = _table(data, message, 2)
    at = _table(data, batch, 2)
    is_packed = _offset(data, batch, 3) > 0
    total = 0
    for k in range(struct.unpack_from("<I", data, at)[0]):
        offset, length = struct.unpack_from("<qq", data, at + 4 + 16 * k)
        claimed = struct.unpack_from("<q", body, offset)[0] if is_packed and length else -1
        total += length if claimed == -1 else claimed
        if min(offset, length, claimed + 1) < 0:
            raise TableError("a buffer of a length below zero")
    return total


def _table(data: memoryview, table: int, field: int) -> int:
    """Where the table or vector lies that a field of a flatbuffer's table leads to."""
    at = table + _offset(data, table, field)
    return int(at + struct.unpack_from("<I", data, at)[0])


def _offset(data: memoryview, table: int, field: int) -> int:
    """Where a field lies in its table; 0 if it is not there."""
    described = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, described)[0]
    return int(struct.unpack_from("<H", data, described + 4 + 2 * field)[0]) if 4 + 2 * field < size else 0


def _shown(err: BaseException) -> str:
    return " ".join(str(err).split()) or type(err).__name__
