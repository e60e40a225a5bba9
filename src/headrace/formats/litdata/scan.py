"""One pass over a LitData chunk: where its items lie, and what their leaves are."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from headrace.errors import DamagedError
from headrace.formats.columns import I64
from headrace.formats.fields import Field
from headrace.formats.format import ScanOptions
from headrace.formats.litdata.index import LitDataIndex, read_item
from headrace.formats.litdata.leaves import leaf_field, leaf_reader, observed
from headrace.formats.litdata.spec import Chunk
from headrace.formats.litdata.table import KEY, MAGIC, Batches, TableError, table_fields
from headrace.formats.records.frames import AS_STORED, Frame, Frames
from headrace.formats.records.index import RowsBuilder
from headrace.formats.records.lines import check_length
from headrace.formats.records.stream import ShardStream
from headrace.formats.shards import Shard
from headrace.formats.unpacking import UnpackError, unpack, unpacked
from headrace.storage import File

_FRAMED = b"LDFZ01\0\0"
_PREFIX = struct.Struct("<HHIII")  # behind that: version, flags, items, items a frame, frames
_FRAME = struct.Struct("<IIQII")  # first item, items, offset, length, unpacked length
_TAIL = struct.Struct("<I8s")
_COUNT = struct.Struct("<I")
_SKIP_BYTES = 1 << 20


def scan_litdata(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[LitDataIndex, Shard]:
    """The index of a chunk, made in one pass over it, and its row.

    Raises DamagedError for a chunk that is cut off, or other than the dataset's `index.json` says.
    """
    chunk = Chunk(**hints["chunk"])
    with ShardStream(file, options, "zst" if chunk.packing == "chunk" else None) as stream:
        scan = _Scan(stream, chunk, options.max_sample_bytes)
        try:
            if _part(file, 0, len(_FRAMED)) == _FRAMED:
                scan.framed()
            elif stream.codec is None and _part(file, file.size - len(MAGIC), len(MAGIC)) == MAGIC:
                scan.table(file.size)
            else:
                scan.items(file.size)
        except TableError as err:
            raise DamagedError(f"{file.name}: its Arrow table cannot be read: {err}") from err
        index = scan.index()
        return index, index.row(stream.digest())


class _Scan:
    """What a pass over a chunk finds; one of `items`, `framed` and `table` is run."""

    def __init__(self, stream: ShardStream, chunk: Chunk, max_sample_bytes: int) -> None:
        self._stream, self._chunk, self._max = stream, chunk, max_sample_bytes
        self._rows = RowsBuilder(chunk.file, stream.name)
        self._names, self._leaves = list(chunk.names), [leaf_reader(encoding) for encoding in chunk.encodings]
        pairs = zip(chunk.names, chunk.encodings, strict=True)
        self._fields = {name: leaf_field(encoding) for name, encoding in pairs}
        self._seen: dict[str, Field] = {}
        self._sizes: list[int] = []
        self._frames: Frames | None = None
        self._schema: pa.Schema | None = None

    def index(self) -> LitDataIndex:
        """The finished index."""
        is_by_sample = self._chunk.packing == "sample" and self._frames is None
        facts = {
            "names": self._names,
            "encodings": list(self._chunk.encodings),
            "is_tokens": self._chunk.is_tokens,
            "sizes": np.array(self._sizes, "<i8").tobytes().hex() if is_by_sample else None,
            "schema": None if self._schema is None else self._schema.serialize().to_pybytes().hex(),
        }
        fields = {name: self._seen.get(name, field) for name, field in self._fields.items() if name != KEY}
        return LitDataIndex(self._stream.stored_bytes, self._rows.rows(), fields, facts, self._frames)

    def items(self, file_bytes: int) -> None:
        """A chunk of items, plain or packed as a whole."""
        num_items = self._check_count(_COUNT.unpack(self._read(_COUNT.size))[0])
        offsets = self._table(num_items, 4 * (num_items + 2), max(file_bytes, self._max))
        for length in np.diff(offsets).tolist():
            offset, record = self._stream.at, self._read_item(length)
            self._take(offset, record, 0 if self._stream.codec else xxhash.xxh3_64_intdigest(record))
        self._check_end()
        self._frames = self._stream.frames(len(self._rows))

    def framed(self) -> None:
        """A chunk whose items are packed in runs."""
        self._read(len(_FRAMED))
        version, _, num_items, _, num_frames = _PREFIX.unpack(self._read(_PREFIX.size))
        if version != 1:
            raise self._error(f"is packed in version {version}, and this release reads version 1")
        offsets = self._table(self._check_count(num_items), 0, self._max)
        runs = [_FRAME.unpack(self._read(_FRAME.size)) for _ in range(min(num_frames, num_items))]
        frames, first = [], 0
        for begin, count, offset, length, size in runs:
            end = first + count
            is_next = begin == first and offset == self._stream.at and end <= num_items
            if not is_next or offsets[end] - offsets[first] != size:
                raise self._error(f"has a run of items that does not go on at item {first:,}")
            packed = self._read(length)
            self._take_run(packed, np.diff(offsets[first : end + 1]).tolist())
            frames.append(Frame(count, offset, length, xxhash.xxh3_64_intdigest(packed), size))
            first = end
        if first != num_items:
            raise self._error(f"has {first:,} of its {num_items:,} items")
        self._check_end()
        self._frames = Frames("zst", frames)

    def table(self, file_bytes: int) -> None:
        """A chunk whose samples are rows of Arrow record batches. Its items, where older releases kept both, are not
        looked at."""
        num_items = self._check_count(_COUNT.unpack(self._read(_COUNT.size))[0])
        offsets = self._table(num_items, 4 * (num_items + 2), file_bytes)
        left = int(offsets[-1] - offsets[0])
        while left:
            left -= len(self._read(min(left, _SKIP_BYTES)))
        start, frames = self._stream.at, []
        batches = Batches(self._stream, self._max)
        self._schema, self._fields = batches.schema, table_fields(batches.schema)
        for at, data, batch, size in batches:
            frames.append(Frame(batch.num_rows, start + at, len(data), xxhash.xxh3_64_intdigest(data), size))
            self._take_batch(batch, size)
        self._check_count(len(self._rows))
        self._check_tail(start)
        self._frames = Frames(AS_STORED, frames)

    def _take_run(self, packed: bytes, lengths: list[int]) -> None:
        content, at = io.BufferedReader(unpacked(packed, "zst"), _SKIP_BYTES), 0
        try:
            for length in lengths:
                check_length(self._stream.name, at, length, self._max)
                self._take(at, content.read(length), 0)
                at += length
            if content.read(1):
                raise UnpackError("it unpacks to more than its items")
        except UnpackError as err:
            raise self._error(f"has a run of items that does not unpack ({err})") from err

    def _take(self, offset: int, record: bytes, checksum: int) -> None:
        """The next item; one that cannot be read is noted as damaged."""
        sample: dict[str, Any] = {}
        size = len(record)
        try:
            item = memoryview(record)
            if self._chunk.packing == "sample":
                item = unpack(item, "zst", self._max)
                size = len(item)
            sample = read_item(item, self._names, self._leaves, self._chunk.is_tokens)
        except ValueError as err:  # an UnpackError is one
            self._rows.mark(len(self._rows), str(err))
        for name, value in sample.items():
            self._observe(name, value)
        key = sample.get(KEY)
        self._sizes.append(size)
        self._rows.add(offset, len(record), checksum, key if isinstance(key, str) else None)

    def _observe(self, name: str, value: Any) -> None:
        field = observed(self._fields[name], value)
        known = self._seen.get(name, field)
        if known != field:
            field = join_fields(known, field)
        self._seen[name] = field

    def _take_batch(self, batch: pa.RecordBatch, size: int) -> None:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if name in self._fields and column.null_count:
                self._fields[name] = self._fields[name].merged(Field("null", nullable=True))
        keys = batch.column(KEY).to_pylist() if KEY in batch.schema.names else [None] * batch.num_rows
        for key in keys:
            self._rows.add(0, size // batch.num_rows, 0, key if isinstance(key, str) else None)

    def _table(self, num_items: int, start: int, max_bytes: int) -> I64:
        """The places of items, which begin at `start`, and where the last one ends."""
        check_length(self._stream.name, self._stream.at, 4 * (num_items + 1), max_bytes)
        offsets = np.frombuffer(self._read(4 * (num_items + 1)), "<u4").astype(np.int64)
        if offsets[0] != start or np.any(np.diff(offsets) < 0):
            raise self._error("has items that do not lie one behind the other")
        return offsets

    def _read_item(self, length: int) -> bytes:
        check_length(self._stream.name, self._stream.at, length, self._max)
        return self._read(length)

    def _read(self, num_bytes: int) -> bytes:
        data = self._stream.read(num_bytes)
        if len(data) < num_bytes:
            raise self._error(f"is cut short: it ends at byte {self._stream.at:,}")
        return data

    def _check_count(self, num_items: int) -> int:
        if num_items != self._chunk.samples:
            raise self._error(f"has {num_items:,} samples, the dataset's index.json says {self._chunk.samples:,}")
        return num_items

    def _check_end(self) -> None:
        if self._stream.read(1):
            raise self._error(f"has data behind its last item, at byte {self._stream.at - 1:,}")

    def _check_tail(self, start: int) -> None:
        """What follows the record batches: Arrow's own end, the length of the table, and a mark."""
        tail = b""
        while data := self._stream.read(_SKIP_BYTES):
            tail = (tail + data)[-_TAIL.size :]
        length = self._stream.at - _TAIL.size - start
        if tail != _TAIL.pack(length & 0xFFFFFFFF, MAGIC):
            raise self._error(f"has an Arrow table of {length:,} bytes, and it says another length")

    def _error(self, what: str) -> DamagedError:
        return DamagedError(f"{self._stream.name} {what}; restore it")


def join_fields(one: Field, other: Field) -> Field:
    """What holds for a leaf that is the one in some samples or chunks and the other in others: arrays may differ in
    type, and what else differs is as each chunk has it."""
    if "null" in (one.type, other.type) or (one.type, one.dtype) == (other.type, other.dtype):
        return one.merged(other)
    return Field("array" if one.type == other.type == "array" else "json", nullable=one.nullable or other.nullable)


def _part(file: File, offset: int, length: int) -> bytes:
    return bytes(file.read(offset, length)) if 0 <= offset <= file.size - length else b""
