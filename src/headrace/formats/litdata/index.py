"""LitData chunks, as `litdata.optimize` writes them. Only read, and without running anything that is in them.

    u32 n | u32 offsets[n + 1] | items          little-endian; an item: u32 length of each leaf, then the leaves

What the leaves are stands in `index.json` (`spec`, `leaves`). Chunks may be packed by zstd: as whole files,
in runs of items, or item by item; samples of plain values may be kept as an Arrow table instead (`table`). In
datasets of tokens an item is the tokens themselves. LitData keeps no checksums, so damage is noticed with an index of
headrace, or where it breaks the layout.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Self

import numpy as np

from headrace.errors import DamagedError, DatasetError
from headrace.formats.checking import Checked
from headrace.formats.columns import I64
from headrace.formats.fields import Field
from headrace.formats.format import Found, Listing, ScanOptions
from headrace.formats.index import Opened
from headrace.formats.litdata.leaves import check_encoding, leaf_reader
from headrace.formats.litdata.spec import NAME, chunks_in
from headrace.formats.litdata.table import KEY, OpenedTable, TableError, read_batch, read_schema
from headrace.formats.records.frames import Frames
from headrace.formats.records.index import RecordsIndex, Rows
from headrace.formats.unpacking import unpack_exactly
from headrace.storage import quoted


class LitDataIndex(RecordsIndex):
    """The index of a LitData chunk."""

    format: ClassVar[str] = "litdata"

    def _prepare(self) -> None:
        self._names: list[str] = self._facts["names"]
        self._leaves = [leaf_reader(encoding) for encoding in self._facts["encodings"]]
        sizes = self._facts["sizes"]
        self._sizes: I64 | None = None if sizes is None else np.frombuffer(bytes.fromhex(sizes), "<i8")
        schema = self._facts["schema"]
        self._schema = None if schema is None else read_schema(bytes.fromhex(schema))

    @property
    def sample_bytes(self) -> I64:
        return self._rows.lengths if self._sizes is None else self._sizes

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        if self._schema is None or self._frames is None:
            return super().open(first, last, data)
        try:
            frames = self._frames.unpacked(first, last, data)
            batches = {k: read_batch(frame, self._schema) for k, frame in frames.items()}
        except TableError as err:
            raise DamagedError(f"its Arrow table cannot be read: {err}") from err
        return OpenedTable(self.key, batches, self._frames)

    def _decoded(self, i: int, record: memoryview) -> dict[str, Any]:
        item = record if self._sizes is None else unpack_exactly(record, "zst", int(self._sizes[i]))
        sample = read_item(item, self._names, self._leaves, self._facts["is_tokens"])
        sample.pop(KEY, None)
        return sample

    @classmethod
    def _made(
        cls, shard_bytes: int, rows: Rows, fields: Mapping[str, Field], reading: Checked, frames: Frames | None
    ) -> Self:
        encodings = [encoding.text() for encoding in reading["encodings"].elements()]
        names = [name.text() for name in reading["names"].elements()]
        is_tokens = reading["is_tokens"].value
        if len(names) != len(encodings) or (is_tokens and len(names) != 1):
            raise reading["names"].error("must be one for each leaf")
        sizes = reading.get("sizes").optional(Checked.text)
        try:
            for encoding in encodings:
                check_encoding(encoding, reading.file)
            if sizes is not None and len(bytes.fromhex(sizes)) != 8 * len(rows.offsets):
                raise ValueError("one size for each sample is needed")
            if (schema := reading.get("schema").optional(Checked.text)) is not None:
                read_schema(bytes.fromhex(schema))
        except (DatasetError, ValueError) as err:
            raise reading.error(f"must be about leaves that are read ({err})") from err
        facts = {"names": names, "encodings": encodings, "is_tokens": is_tokens, "sizes": sizes, "schema": schema}
        return cls(shard_bytes, rows, fields, facts, frames)


def read_item(item: memoryview, names: list[str], leaves: list[Any], is_tokens: bool) -> dict[str, Any]:
    """The leaves of an item by name. Raises ValueError if it is malformed."""
    if is_tokens:
        return {names[0]: leaves[0](item)}
    at = 4 * len(leaves)
    if at > len(item):
        raise ValueError(f"an item of {len(item):,} bytes, which {len(leaves)} lengths do not fit into")
    sample: dict[str, Any] = {}
    for name, leaf, length in zip(names, leaves, struct.unpack_from(f"<{len(leaves)}I", item), strict=True):
        if at + length > len(item):
            break
        sample[name] = leaf(item[at : at + length])
        at += length
    if at != len(item) or len(sample) != len(leaves):
        raise ValueError(f"leaves that do not fill the item's {len(item):,} bytes")
    return sample


def find_litdata(listing: Listing, options: ScanOptions) -> Found | None:
    """The chunks that a folder's `index.json` lists. Raises DatasetError for what is not read: pickles, encryption."""
    if NAME not in listing.names:
        return None
    chunks = chunks_in(listing.read(NAME), quoted(NAME))
    if chunks is None:
        return None
    return Found([chunk.file for chunk in chunks], [{"chunk": asdict(chunk)} for chunk in chunks])
