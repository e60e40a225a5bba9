"""Writing Parquet shards: samples wait until they fill a row group, which is then written as one.

A row group is read and unpacked as a whole, so its size is that of a block: about 4 MiB. Columns of small values come
first, so that reading some of them touches little else. All is packed with zstd at level 3. Measured, in processor
time: of source text 0.28 is left and unpacked at 1.4 GB/s, against 0.44 and 0.6 GB/s with snappy; images, packed
already, go through at 1.5 GB/s and come back at 16. But arrays of floats stay as they are: zstd takes 8 % off, and
reads half as fast. Pages carry checksums, and the finished file is read once: what the index says of it was found in
it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import SourceError, StorageError
from headrace.formats.fields import Field
from headrace.formats.format import ScanOptions
from headrace.formats.parquet.encode import decoded, member_bytes
from headrace.formats.parquet.fields import KEY
from headrace.formats.parquet.footer import MAX_GROUP_BYTES
from headrace.formats.parquet.index import ParquetIndex
from headrace.formats.parquet.kinds import BYTES, TEXT, Kind, grid_in
from headrace.formats.parquet.scan import scan_parquet
from headrace.formats.parquet.table import Columns, column_array, leaves_of, schema_of
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.shards import Shard
from headrace.storage import LocalFile, quoted

ROW_GROUP_BYTES = 4 << 20
ZSTD_LEVEL = 3
MAX_SAMPLE_BYTES = MAX_GROUP_BYTES // 4
"""What a sample may take: so much that its row group can be read again, with room to spare."""

_FLOATS = ("float16", "float32", "float64")
_VALUE_BYTES = 16  # what a value takes besides its bytes, at most


class ParquetWriter(ShardWriter):
    """Writes a Parquet shard. The dataset's first row group decides the types of its columns."""

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        super().__init__(path, fields)
        self._columns = Columns(fields)
        self._waiting: list[tuple[str, dict[str, Any]]] = []
        self._waiting_bytes = self._num_groups = 0
        self._last: tuple[Encoded | None, int] = None, 0
        self._sink = _Sink(self._write)
        self._file: pq.ParquetWriter | None = None
        self._row: Shard | None = None

    @property
    def fields(self) -> dict[str, Field]:
        """What the samples of this shard and earlier ones have: the types that columns got, whatever single samples
        show of them."""
        return self._columns.fields

    def finish(self) -> Shard:
        self._write_group()
        assert self._file is not None, "a shard has samples"
        self._file.close()
        row = super().finish()
        assert self._row is not None
        return replace(self._row, file=row.file, index_xxh3_128=row.index_xxh3_128)

    def abandon(self) -> None:
        self._sink.write_bytes = len  # pyarrow writes a footer when it lets go of a file
        if self._file is not None:
            self._file.close()
        super().abandon()

    def _add(self, sample: Encoded) -> None:
        num_bytes = self._measured(sample)
        if num_bytes > MAX_SAMPLE_BYTES:
            raise SourceError(
                f"sample {quoted(sample.key)} takes {num_bytes:,} bytes, and a row of Parquet up to "
                f"{MAX_SAMPLE_BYTES:,}: pack it as a tar"
            )
        view = memoryview(sample.blob)
        values = {name: decoded(sample.fields[name], view[at : at + length]) for name, at, length in sample.members}
        self._columns.add(sample.key, sample.fields, values)
        if self._waiting and self._waiting_bytes + num_bytes > ROW_GROUP_BYTES:
            self._write_group()
        self._waiting.append((sample.key, values))
        self._waiting_bytes += num_bytes

    def _added_bytes(self, sample: Encoded) -> int:
        return self._waiting_bytes + self._measured(sample) + self._columns.footer_bytes(self._num_groups + 2)

    def _measured(self, sample: Encoded) -> int:
        """What a sample takes in a row group before it is packed, at most."""
        if self._last[0] is not sample:  # asked twice in a row: whether it fits, and as it is added
            sizes = (member_bytes(sample.fields[name], sample.blob, at, length) for name, at, length in sample.members)
            self._last = sample, len(sample.key.encode()) + _VALUE_BYTES * (1 + len(sample.members)) + sum(sizes)
        return self._last[1]

    def _write_group(self) -> None:
        if not self._waiting:
            return
        self._columns.fix()
        kinds = self._columns.kinds
        arrays = [pa.array([key for key, _ in self._waiting], pa.string())]
        for name, kind in kinds.items():
            arrays.append(column_array(kind, [values.get(name) for _, values in self._waiting]))
        if self._file is None:
            self._file = _open(self._sink, kinds)
        self._file.write_table(pa.Table.from_arrays(arrays, schema=schema_of(kinds)), row_group_size=len(self._waiting))
        self._waiting, self._waiting_bytes = [], 0
        self._num_groups += 1

    def _index(self) -> ParquetIndex:
        """What is found in the finished file."""
        with LocalFile(self._temporary) as file:
            index, row = scan_parquet(file, {"file": self.path.name}, ScanOptions(max_sample_bytes=MAX_GROUP_BYTES))
        if row.xxh3_128 != self._digest.hexdigest():
            raise StorageError(f"{quoted(self._temporary)} does not hold what was written; check the disk")
        self._row = row
        return index


class _Sink(io.RawIOBase):
    """A file for pyarrow to write to."""

    def __init__(self, write_bytes: Callable[[Any], Any]) -> None:
        self.write_bytes, self._at = write_bytes, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.write_bytes(view)
        self._at += len(view)
        return len(view)


def _open(sink: _Sink, kinds: Mapping[str, Kind]) -> pq.ParquetWriter:
    leaves = [(KEY, TEXT), *leaves_of(kinds)]
    packed = [path for path, leaf in leaves if not _is_float_array(path, leaf)]
    return pq.ParquetWriter(
        sink,
        schema_of(kinds),
        compression={path: "zstd" if path in packed else "none" for path, _ in leaves},
        compression_level=dict.fromkeys(packed, ZSTD_LEVEL),
        use_dictionary=[path for path, leaf in leaves if leaf == TEXT],
        write_statistics=[path for path, leaf in leaves if leaf not in (TEXT, BYTES)],
        write_page_checksum=True,
    )


def _is_float_array(path: str, leaf: str) -> bool:
    grid = grid_in(leaf)
    return grid[0] in _FLOATS if grid is not None else leaf in _FLOATS and path.endswith(".list.element")
