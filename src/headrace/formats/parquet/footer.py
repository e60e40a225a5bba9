"""What a Parquet file's footer says: its columns, and where the chunks of its row groups lie.

A footer is input like any other, and pyarrow ends the process on some that lie. So it is read here, what is relied on
is checked, and pyarrow gets a footer of its own for each row group, made of the numbers that were checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from headrace.errors import DamagedError, DatasetError
from headrace.formats.parquet.schema import FileSchema
from headrace.formats.parquet.thrift import Reader, Struct, ThriftError

MAGIC = b"PAR1"
ENCRYPTED_MAGIC = b"PARE"
TAIL_BYTES = 8
"""At the end of a file: the footer's length and the magic number."""
MAX_GROUP_BYTES = (2 << 30) - 1
"""What a row group may take, stored and in memory: as far as Arrow's 32-bit offsets reach."""

_MAX_VALUES = 20_000_000  # ten seconds' worth
_CODECS = {0: "none", 1: "snappy", 2: "gzip", 4: "brotli", 5: "lz4 (Hadoop)", 6: "zstd", 7: "lz4"}


class Chunk(NamedTuple):
    """One leaf's part of a row group."""

    offset: int
    num_bytes: int
    num_values: int
    codec: int
    """As Parquet numbers them."""

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.offset + self.num_bytes


class RowGroup(NamedTuple):
    """One row group: a chunk for each leaf."""

    number: int
    num_rows: int
    chunks: Sequence[Chunk]

    @property
    def start(self) -> int:
        """Where it begins in the file."""
        return min(chunk.offset for chunk in self.chunks)

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return max(chunk.end for chunk in self.chunks)

    def check(self, schema: FileSchema, file_bytes: int) -> None:
        """Raise DamagedError unless it lies within the file and has the columns of the schema."""
        if len(self.chunks) != len(schema.leaves) or self.num_rows < 0:
            raise DamagedError(
                f"row group {self.number} has {self.num_rows:,} rows of {len(self.chunks)} columns, the schema "
                f"{len(schema.leaves)} columns"
            )
        if not self.num_rows:
            return  # it is never read, and writers say what they like of where it lies
        for leaf, chunk in zip(schema.leaves, self.chunks, strict=True):
            if chunk.codec not in _CODECS:
                raise DatasetError(f"column {leaf.path!r} is packed by codec {chunk.codec}; write it again with zstd")
            if min(chunk) < 0 or chunk.offset < len(MAGIC) or chunk.end > file_bytes - TAIL_BYTES:
                raise DamagedError(
                    f"row group {self.number} lies outside of the file: {chunk.num_bytes:,} bytes of column "
                    f"{leaf.path!r} at {chunk.offset:,}"
                )
            if not leaf.is_repeated and chunk.num_values != self.num_rows:
                raise DamagedError(
                    f"row group {self.number} has {self.num_rows:,} rows, and in column {leaf.path!r} "
                    f"{chunk.num_values:,}"
                )
        if self.chunks and self.end - self.start > MAX_GROUP_BYTES:
            raise too_large(self.number, self.end - self.start, MAX_GROUP_BYTES)


class Footer:
    """A file's footer, checked."""

    def __init__(self, data: bytes, file_bytes: int) -> None:
        """`data` is the footer without its length and magic; the file has `file_bytes` bytes in all.

        Raises DamagedError for a footer that is malformed or reaches outside its file, DatasetError for a file that
        headrace does not read.
        """
        self.data = data
        reader = Reader(memoryview(data), _MAX_VALUES)
        try:
            self._file = reader.struct()
            if 8 in self._file:
                raise DatasetError("it is encrypted; write it again in the clear")
            self.facts = {bytes(fact[1]): bytes(fact.get(2, b"")) for fact in self._file.get(5, ())}
            schema = memoryview(data)[slice(*reader.spans[2])]
            writer = bytes(self._file.get(6, b""))
            self.schema = FileSchema(bytes(schema), self.facts.get(b"ARROW:schema", b""), writer)
            self.groups = tuple(_row_group(k, group, self.schema) for k, group in enumerate(self._file[4]))
            num_rows = self._file[3]
        except (ThriftError, LookupError, TypeError, AttributeError, ValueError) as err:
            raise DamagedError(f"its footer is malformed ({type(err).__name__}: {err})") from err
        for group in self.groups:
            group.check(self.schema, file_bytes - len(data))
        if sum(group.num_rows for group in self.groups) != num_rows:
            raise DamagedError(f"its footer speaks of {num_rows:,} rows, its row groups of others")

    @property
    def features(self) -> Mapping[str, Any]:
        """What Hugging Face `datasets` notes of the columns, by name; nothing where it did not write the file."""
        try:
            features = orjson.loads(self.facts[b"huggingface"])["info"]["features"]
            return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
        except (KeyError, TypeError, AttributeError, orjson.JSONDecodeError):
            return {}

    def has_nulls(self, leaf: int) -> bool:
        """Whether some value of a leaf is None: so it is taken to be where the file does not count them."""
        return any(count != 0 for count in self._null_counts(leaf))

    def _null_counts(self, leaf: int) -> Iterator[Any]:
        for group in self._file[4]:
            statistics = group[1][leaf][3].get(12)
            yield statistics.get(3) if isinstance(statistics, dict) else None


def too_large(k: int, num_bytes: int, limit: int) -> DatasetError:
    """What is wrong with a row group that takes too much memory."""
    return DatasetError(
        f"row group {k} may take {num_bytes:,} bytes, more than {limit:,}: write the file again with smaller row "
        "groups (pyarrow: row_group_size=1000)"
    )


def _row_group(number: int, group: Struct, schema: FileSchema) -> RowGroup:
    leaves = [leaf.kind for leaf in schema.leaves]
    kinds = [column[3][1] for column in group[1]]
    if kinds != leaves:
        raise DamagedError(f"row group {number} has columns of other types than the schema says")
    return RowGroup(number, _number(group[3]), tuple(_chunk(column) for column in group[1]))


def _chunk(column: Struct) -> Chunk:
    if column.get(1):
        raise DatasetError(
            f"its columns lie in other files ({bytes(column[1]).decode(errors='replace')!r}): open those"
        )
    if 8 in column or 9 in column:
        raise DatasetError("it is encrypted; write it again in the clear")
    facts = column[3]
    offset, dictionary = _number(facts[9]), _number(facts.get(11, 0))
    if 0 < dictionary < offset:
        offset = dictionary
    return Chunk(offset, _number(facts[7]), _number(facts[5]), _number(facts[4]))


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a number is missing")
    return value
