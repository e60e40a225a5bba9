"""A token shard whose samples are bins: several documents in one row, or padded to one length.

Which documents those are is planned once and kept in a file beside the shard: `shard-000000.bin.rows-2048.idx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from headrace.errors import ManifestError
from headrace.formats.arrow import IndexFile, Lists, index_to_bytes
from headrace.formats.columns import I64
from headrace.formats.fields import Field
from headrace.formats.index import Opened, Range, ShardIndex
from headrace.formats.tokens.index import FIELD, TokensIndex, touched
from headrace.formats.tokens.planning import Bins, Parts, plan_padded, plan_rows

Layout: TypeAlias = Literal["rows", "padded"]
POSITIONS, SEGMENTS, CU_SEQLENS, LENGTHS = "positions", "segments", "cu_seqlens", "lengths"
GAP_BYTES = 64 << 10
"""What may lie between two documents that are read in one go."""
_COLUMNS = (("document", "int64s"), ("first", "int64s"))


def bin_fields(layout: Layout, dtype: str, capacity: int) -> dict[str, Field]:
    """What samples of this layout have."""
    if layout == "padded":
        return {FIELD: Field("array", dtype), LENGTHS: Field("array", "int32")}
    row = {POSITIONS: Field("array", "int32", (capacity,)), SEGMENTS: Field("array", "int32", (capacity,))}
    return {FIELD: Field("array", dtype, (capacity,)), **row, CU_SEQLENS: Field("array", "int32")}


class BinIndex(ShardIndex):
    """A token shard whose samples are bins of documents."""

    format: ClassVar[str] = "tokens"

    def __init__(self, documents: TokensIndex, bins: Bins, layout: Layout, capacity: int, stem: str) -> None:
        """`stem` begins the samples' keys."""
        self.shard_bytes = documents.shard_bytes
        self._documents, self._bins, self._layout = documents, bins, layout
        self._capacity, self._stem = capacity, stem
        itemsize, parts = documents.dtype.itemsize, bins.parts
        self._begin = documents.starts[parts.document] + parts.first * itemsize
        self._end = self._begin + parts.length * itemsize
        self._sample_bytes = _sums(self._end - self._begin, bins.starts)

    @classmethod
    def plan(cls, documents: TokensIndex, layout: Layout, capacity: int, stem: str) -> BinIndex:
        """The bins of a shard, planned anew."""
        plan = plan_rows if layout == "rows" else plan_padded
        return cls(documents, plan(documents.token_counts, capacity), layout, capacity, stem)

    @property
    def num_samples(self) -> int:
        return len(self._bins.starts) - 1

    @property
    def nbytes(self) -> int:
        return sum(int(column.nbytes) for column in (*self._bins.parts, self._begin, self._end, self._bins.starts))

    @property
    def sample_bytes(self) -> I64:
        return self._sample_bytes

    def key(self, i: int) -> str:
        return f"{self._stem}:{self._layout}{i}"

    def extent(self, first: int, last: int) -> tuple[int, int]:
        ranges = self.ranges(first, last)
        return (ranges[0].offset, ranges[-1].end - ranges[0].offset) if ranges else (0, 0)

    def ranges(self, first: int, last: int) -> Sequence[Range]:
        parts = slice(self._bins.starts[first], self._bins.starts[last])
        covered = self._documents.blocks.covered
        begin = np.sort(self._begin[parts] // covered * covered)
        end = np.minimum(-(-np.sort(self._end[parts]) // covered) * covered, self.shard_bytes)
        if not len(begin):
            return []
        is_new = np.append(True, begin[1:] > np.maximum.accumulate(end)[:-1] + GAP_BYTES)
        starts = np.flatnonzero(is_new)
        ends = np.append(starts[1:], len(begin)) - 1
        return [Range(int(begin[i]), int(end[k] - begin[i])) for i, k in zip(starts, ends, strict=True)]

    def open(self, first: int, last: int, data: memoryview) -> Opened:
        return _OpenedBins(self, first, last, data)

    def damage(self, first: int, last: int, ranges: Sequence[Range], data: memoryview) -> dict[int, str]:
        """The bins among first .. last-1 that lie in damaged blocks, and the reason; `data` is what the ranges hold."""
        parts, damaged, at = slice(self._bins.starts[first], self._bins.starts[last]), [], 0
        for part in ranges:
            damaged += self._documents.blocks.damaged(part.offset, data[at : at + part.length])
            at += part.length
        found = touched(damaged, self._begin[parts], self._end[parts], int(parts.start))
        bins = np.searchsorted(self._bins.starts, sorted(found), side="right") - 1
        return {k: found[part] for k, part in zip(bins.tolist(), sorted(found), strict=True)}

    def sample(self, i: int, place: Callable[[I64], I64], data: memoryview) -> dict[str, Any]:
        """Bin i; `place` says where in `data` what begins at an offset of the shard lies."""
        parts = slice(self._bins.starts[i], self._bins.starts[i + 1])
        lengths = self._bins.parts.length[parts]
        places = place(self._begin[parts]).tolist()
        texts = [
            np.frombuffer(data, self._documents.dtype, length, at)
            for at, length in zip(places, lengths.tolist(), strict=True)
        ]
        made = self._row(texts, lengths) if self._layout == "rows" else self._padded(texts, lengths)
        return {"__key__": self.key(i), **made}

    def _row(self, texts: list[Any], lengths: I64) -> dict[str, Any]:
        ends = np.cumsum(lengths)
        used = slice(0, int(ends[-1]))
        tokens = np.zeros(self._capacity, self._documents.dtype)
        positions, segments = np.zeros(self._capacity, np.int32), np.zeros(self._capacity, np.int32)
        np.concatenate(texts, out=tokens[used])
        segments[used] = np.repeat(np.arange(1, len(texts) + 1), lengths)
        positions[used] = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        cu_seqlens = np.concatenate(([0], ends)).astype(np.int32)
        return {FIELD: tokens, POSITIONS: positions, SEGMENTS: segments, CU_SEQLENS: cu_seqlens}

    def _padded(self, texts: list[Any], lengths: I64) -> dict[str, Any]:
        tokens = np.zeros((len(texts), int(lengths.max())), self._documents.dtype)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = text
        return {FIELD: tokens, LENGTHS: lengths.astype(np.int32)}

    def to_file(self) -> bytes:
        """The content of the file in which the plan is kept."""
        starts, parts = self._bins.starts, self._bins.parts
        columns = {"document": Lists(starts, parts.document), "first": Lists(starts, parts.first)}
        return index_to_bytes(f"tokens {self._layout}", columns, {"capacity": str(self._capacity)})

    @classmethod
    def from_file(
        cls, data: memoryview, name: str, documents: TokensIndex, layout: Layout, capacity: int, stem: str
    ) -> BinIndex:
        """The bins that a file holds. Raises ManifestError if it is malformed or speaks of other documents."""
        file = IndexFile(data, name, f"tokens {layout}", _COLUMNS)
        document, first = file.lists("document"), file.lists("first")
        counts = documents.token_counts
        is_right = file.fact("capacity") == str(capacity) and np.array_equal(document.starts, first.starts)
        is_right = is_right and bool(np.all(np.diff(document.starts) > 0))
        is_right = is_right and bool(np.all((document.values >= 0) & (document.values < len(counts))))
        if not is_right or bool(np.any((first.values < 0) | (first.values >= counts[document.values]))):
            raise ManifestError(f"the plan {name} is not of the shard that it lies beside: delete it")
        length = np.minimum(counts[document.values] - first.values, capacity)
        parts = Parts(document.values, first.values, length)
        return cls(documents, Bins(document.starts, parts), layout, capacity, stem)


class _OpenedBins(Opened):
    """A run of bins."""

    num_bytes = 0

    def __init__(self, index: BinIndex, first: int, last: int, data: memoryview) -> None:
        ranges = index.ranges(first, last)
        self.damage = index.damage(first, last, ranges, data)
        self._index, self._data = index, data
        self._offsets = np.array([part.offset for part in ranges], np.int64)
        self._starts = np.cumsum([0, *(part.length for part in ranges)])

    def sample(self, i: int) -> dict[str, Any]:
        return self._index.sample(i, self._place, self._data)

    def _place(self, offset: I64) -> I64:
        """Where in the data what lies at these offsets of the shard is."""
        number = np.searchsorted(self._offsets, offset, side="right") - 1
        return self._starts[number] + offset - self._offsets[number]


def _sums(values: I64, starts: I64) -> I64:
    upto = np.concatenate(([0], np.cumsum(values)))
    return upto[starts[1:]] - upto[starts[:-1]]
