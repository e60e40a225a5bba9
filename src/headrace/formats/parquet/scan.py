"""Ordinary Parquet files: found by their first bytes, and read through once for an index."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash

from headrace.errors import DamagedError, DatasetError, OptionError
from headrace.formats.columns import Strings
from headrace.formats.format import Found, Listing, ScanOptions
from headrace.formats.index import Range
from headrace.formats.parquet.columns import get_values, is_text
from headrace.formats.parquet.fields import KEY, class_names, data_columns, fields_of, is_image, values_of
from headrace.formats.parquet.footer import ENCRYPTED_MAGIC, MAGIC, MAX_GROUP_BYTES, TAIL_BYTES, Footer, too_large
from headrace.formats.parquet.index import Content, ParquetIndex, RowGroups
from headrace.formats.parquet.schema import Column, FileSchema
from headrace.formats.parquet.unpack import Stored, plan_unpacking, unpack
from headrace.formats.shards import Shard
from headrace.formats.stems import key_stem
from headrace.storage import File

_CHUNK_BYTES = 1 << 20
_NUM_LOOKED_AT = 16
"""Values of a column of bytes that may show that it holds images: one broken file must not decide."""


def find_parquet(listing: Listing, options: ScanOptions) -> Found | None:
    """The Parquet files of a folder, whatever they are called, and what is called so; `_metadata` speaks of others."""
    names = [name for name in listing.names if name[0] != "_"]
    files = [name for name in names if name.endswith(".parquet") or listing.head(name, len(MAGIC)) == MAGIC]
    return Found(files) if files else None


def scan_parquet(file: File, hints: Mapping[str, Any], options: ScanOptions) -> tuple[ParquetIndex, Shard]:
    """The index of an ordinary Parquet file, made in one pass over it, and its row.

    Pages that carry checksums are checked, all pages must fill their chunks. Raises DamagedError for a file that is cut
    off or broken, DatasetError for what headrace does not read, such as row groups that unpack to 2 GiB.
    """
    if options.dtype is not None:
        raise OptionError(f"dtype is for token files (.bin), and {file.name} is a Parquet file: leave it out")
    try:
        footer = read_footer(file)
        with file.stream() as stream:
            scan = _Scan(stream, footer, file.size, options)
            scan.run()
    except (DamagedError, DatasetError) as err:
        raise type(err)(f"{file.name} cannot be read: {err}") from err
    index = ParquetIndex(scan.content(key_stem(hints["file"])))
    counts = tuple(piece.num_samples for piece in index.pieces)
    return index, Shard("", index.num_samples, file.size, scan.digest.hexdigest(), "", counts, index.unpacked_bytes)


def read_footer(file: File) -> Footer:
    """The footer at the end of a file. Raises DamagedError if there is none."""
    size = file.size
    tail = bytes(file.read(max(0, size - TAIL_BYTES), min(size, TAIL_BYTES)))
    if tail.endswith(ENCRYPTED_MAGIC):
        raise DatasetError("it is encrypted; write it again in the clear")
    length = struct.unpack("<I", tail[:4])[0] if len(tail) == TAIL_BYTES else 0
    if not tail.endswith(MAGIC) or length + TAIL_BYTES + len(MAGIC) > size:
        raise DamagedError("it does not end as Parquet files do: it is cut short, or something was added; restore it")
    return Footer(bytes(file.read(size - TAIL_BYTES - length, length)), size)


class _Scan:
    """One pass over a file: checksums, keys, and what each row group takes."""

    def __init__(self, stream: io.BufferedReader, footer: Footer, size: int, options: ScanOptions) -> None:
        self.digest = xxhash.xxh3_128()
        self._stream, self._footer, self._size, self._at = stream, footer, size, 0
        self._schema = footer.schema
        self._limit = min(options.max_unpacked_bytes, MAX_GROUP_BYTES)
        self._max_sample_bytes = options.max_sample_bytes
        self._fields = fields_of(footer)
        self._memory = np.zeros(len(footer.groups), np.int64)
        self._checksums = np.zeros((len(footer.groups), len(footer.schema.leaves)), np.uint64)
        self._keys: dict[int, list[str]] = {}
        self._key = _key_column(footer.schema)
        self._looked = False

    def run(self) -> None:
        """Read the file to its end."""
        self._pass_over(len(MAGIC))
        groups = [group for group in self._footer.groups if group.num_rows and group.chunks]
        for group in sorted(groups, key=lambda group: group.start):
            if group.start < self._at:
                raise DamagedError(f"its row group {group.number} begins within another")
            self._pass_over(group.start - self._at)
            where = Range(group.start, group.end - group.start)
            self._take(Stored(group, self._read(where.length), [where]))
        footer_at = self._size - TAIL_BYTES - len(self._footer.data)
        self._pass_over(footer_at - self._at)
        if self._read(len(self._footer.data)) != self._footer.data:
            raise DamagedError("it was changed while it was read; try again")
        self._pass_over(self._size - self._at)

    def content(self, stem: str) -> Content:
        """What the index is made of."""
        footer, keys = self._footer, None
        if self._key is not None:
            keys = Strings.of(key for k in range(len(footer.groups)) for key in self._keys.get(k, ()))
        rows = RowGroups.of(footer.groups, self._memory, self._checksums)
        return Content(stem, self._size, footer.schema, rows, self._fields, class_names(footer), keys)

    def _take(self, stored: Stored) -> None:
        k, columns = stored.group.number, tuple(self._schema.columns.values())
        plan = plan_unpacking(self._schema, columns, stored, check_crc=True)
        if plan.num_bytes > self._limit:
            raise too_large(k, plan.num_bytes, self._limit)
        for number in range(len(stored.group.chunks)):
            self._checksums[k, number] = xxhash.xxh3_64_intdigest(stored.chunk(number))
        self._memory[k] = plan.num_bytes
        if plan.step_rows < stored.group.num_rows:
            arrays = unpack(self._schema, columns, stored, plan, self._limit)[0]
            # The steps, and what they are joined to.
            self._memory[k] += 2 * sum(array.nbytes for array in arrays.values())
        if self._memory[k] > self._max_sample_bytes * stored.group.num_rows:
            raise DatasetError(
                f"the {stored.group.num_rows:,} samples of row group {k} take {self._memory[k]:,} bytes, more than "
                f"max_sample_bytes={self._max_sample_bytes:,} each; open it with a larger limit"
            )
        if self._key is not None:
            self._keys[k] = self._read_keys(self._key, stored)
        if not self._looked:
            self._look_for_images(stored)

    def _read_keys(self, column: Column, stored: Stored) -> list[str]:
        plan = plan_unpacking(self._schema, [column], stored)
        arrays, broken = unpack(self._schema, [column], stored, plan, self._limit)
        if broken:
            raise DamagedError(f"row group {stored.group.number} has keys that are not UTF-8 text")
        array = arrays[column.name]
        keys = [*map(get_values(array), range(len(array)))]
        if None in keys:
            where = f"row {keys.index(None)} of row group {stored.group.number}"
            raise DatasetError(f"{where} has no {KEY}: fill the column, or drop it to have keys made of row numbers")
        return keys

    def _look_for_images(self, stored: Stored) -> None:
        self._looked = True
        columns = [column for name, column in data_columns(self._schema).items() if self._fields[name].type == "bytes"]
        plan = plan_unpacking(self._schema, columns, stored)
        arrays = unpack(self._schema, columns, stored, plan, self._limit)[0] if columns else {}
        for column in columns:
            get = values_of(column, arrays[column.name])
            values = (get(i) for i in range(min(_NUM_LOOKED_AT, stored.group.num_rows)))
            if any(is_image(value) for value in values if value is not None):
                self._fields[column.name] = replace(self._fields[column.name], type="image")

    def _pass_over(self, length: int) -> None:
        while length:
            length -= len(self._read(min(length, _CHUNK_BYTES)))

    def _read(self, length: int) -> memoryview:
        data = bytearray(length)
        if self._stream.readinto(data) < length:
            raise DamagedError("it is cut short")
        self.digest.update(data)
        self._at += length
        return memoryview(data)


def _key_column(schema: FileSchema) -> Column | None:
    column = schema.columns.get(KEY)
    if column is not None and not is_text(column.type):
        raise DatasetError(f"its column {KEY} is {column.type}, and keys are text; rename or cast it")
    return column
