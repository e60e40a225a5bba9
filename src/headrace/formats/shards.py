"""The shards of a dataset: one row each, kept as columns.

A million shards are a million rows: columns are read, checked and held as a whole, without an object a row.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from headrace.errors import ManifestError
from headrace.formats.checking import MAX_INTEGER, Checked
from headrace.formats.columns import I64, Digests, Strings


@dataclass(frozen=True, slots=True)
class Shard:
    """One row of a manifest."""

    file: str
    samples: int
    bytes: int
    xxh3_128: str
    index_xxh3_128: str
    pieces: tuple[int, ...] = ()
    """Samples of each part that is read on its own (a row group of Parquet); none: the shard is one piece."""
    unpacked_bytes: int = 0
    """Memory that the shard takes unpacked, if its pieces are read as a whole; 0: it is read by ranges."""
    header_bytes: int = 0
    """Bytes before the first token, in a token file that has a header."""

    @classmethod
    def from_json(cls, value: Checked) -> Shard:
        """The row of a JSON object, checked."""
        pieces = value.get("pieces").optional(Checked.elements) or ()
        return cls(
            value["file"].file_name(),
            value["samples"].integer(),
            value["bytes"].integer(),
            value["xxh3_128"].hex_digest(),
            value["index_xxh3_128"].hex_digest(),
            tuple(count.integer() for count in pieces),
            value.get("unpacked_bytes").optional(Checked.integer) or 0,
            value.get("header_bytes").optional(Checked.integer) or 0,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object of the row."""
        row: dict[str, Any] = {
            "file": self.file,
            "samples": self.samples,
            "bytes": self.bytes,
            "xxh3_128": self.xxh3_128,
            "index_xxh3_128": self.index_xxh3_128,
        }
        if self.pieces:
            row["pieces"] = list(self.pieces)
        if self.unpacked_bytes:
            row["unpacked_bytes"] = self.unpacked_bytes
        if self.header_bytes:
            row["header_bytes"] = self.header_bytes
        return row


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """The shards of a dataset as columns, in storage order."""

    file: Strings
    """Names within the dataset's folder, in full."""
    samples: I64
    bytes: I64
    xxh3_128: Digests
    """Checksum of the whole shard."""
    index_xxh3_128: Digests
    """Checksum of the shard's index file."""
    piece_samples: I64
    """Samples of each part that is read on its own, over all shards in order."""
    piece_starts: I64
    """Shard k has the pieces piece_starts[k] .. piece_starts[k + 1] - 1."""
    unpacked_bytes: I64
    """Memory that a shard takes unpacked, if its pieces are read as a whole; 0: it is read by ranges."""
    header_bytes: I64
    """Bytes before the first token, in token files that have a header."""

    @classmethod
    def of(cls, rows: Sequence[Shard]) -> Shards:
        """The columns of these rows."""
        pieces = [row.pieces or (row.samples,) for row in rows]
        return cls(
            Strings.of(row.file for row in rows),
            np.array([row.samples for row in rows], np.int64),
            np.array([row.bytes for row in rows], np.int64),
            Digests.of([row.xxh3_128 for row in rows]),
            Digests.of([row.index_xxh3_128 for row in rows]),
            np.fromiter(chain.from_iterable(pieces), np.int64),
            _starts([len(counts) for counts in pieces]),
            np.array([row.unpacked_bytes for row in rows], np.int64),
            np.array([row.header_bytes for row in rows], np.int64),
        )

    def __len__(self) -> int:
        return len(self.file)

    def row(self, k: int) -> Shard:
        """The row of shard k."""
        return Shard(
            self.file[k],
            int(self.samples[k]),
            int(self.bytes[k]),
            self.xxh3_128[k],
            self.index_xxh3_128[k],
            tuple(self.piece_samples[self.piece_starts[k] : self.piece_starts[k + 1]].tolist()),
            int(self.unpacked_bytes[k]),
            int(self.header_bytes[k]),
        )

    def to_json(self) -> dict[str, list[Any] | str]:
        """The columns as JSON values; what holds for ordinary shards alone is left out."""
        columns: dict[str, list[Any] | str] = {
            "file": list(self.file),
            "samples": self.samples.tolist(),
            "bytes": self.bytes.tolist(),
            "xxh3_128": self.xxh3_128.to_json(),
            "index_xxh3_128": self.index_xxh3_128.to_json(),
        }
        if len(self.piece_samples) != len(self):
            counts, starts = self.piece_samples.tolist(), self.piece_starts.tolist()
            columns["pieces"] = [counts[starts[k] : starts[k + 1]] for k in range(len(self))]
        if self.unpacked_bytes.any():
            columns["unpacked_bytes"] = self.unpacked_bytes.tolist()
        if self.header_bytes.any():
            columns["header_bytes"] = self.header_bytes.tolist()
        return columns

    @classmethod
    def from_json(cls, value: Checked) -> Shards:
        """The columns of a JSON object, checked, each a list or a column already. Raises ManifestError."""
        names = value["file"]
        num_shards = len(_elements(names))
        for name in ("samples", "bytes"):
            _check_length(value[name], len(_elements(value[name])), num_shards)
        xxh3_128, index_xxh3_128 = (_digests(value[name], num_shards) for name in ("xxh3_128", "index_xxh3_128"))
        file, samples = _file_names(names), _counts(value["samples"])
        piece_samples, piece_starts = _pieces(value.get("pieces"), samples)
        return cls(
            file,
            samples,
            _counts(value["bytes"]),
            xxh3_128,
            index_xxh3_128,
            piece_samples,
            piece_starts,
            _optional_counts(value.get("unpacked_bytes"), num_shards),
            _optional_counts(value.get("header_bytes"), num_shards),
        )


def _elements(column: Checked) -> Any:
    """The list, or the column that was read in its place."""
    if not isinstance(column.value, list | Strings | np.ndarray):
        raise column.error("must be an array")
    return column.value


def _check_length(column: Checked, length: int, num_shards: int) -> None:
    if length != num_shards:
        raise column.error(f"must have one entry a shard: {num_shards} shards, {length} entries")


def _first_error(column: Checked, check: Any) -> ManifestError:
    """What is wrong with a column that failed as a whole: the error of its first bad element."""
    for item in column.elements():
        try:
            check(item)
        except ManifestError as err:
            return err
    raise AssertionError("a column failed of which no element fails")


def _file_names(column: Checked) -> Strings:
    names = _elements(column)
    if isinstance(names, Strings):
        return names
    if set(map(type, names)) - {str} or not all(map(_is_plain, names)):
        for item in column.elements():
            item.file_name()  # raises, unless the name only has folders in it
    if len(set(names)) != len(names):
        raise column.error("must name every shard once")
    try:
        return Strings.of(names)
    except UnicodeEncodeError as err:
        raise column.error("must hold names that are valid UTF-8") from err


def _is_plain(name: str) -> bool:
    return (
        name.isascii() and name.isprintable() and "/" not in name and "\\" not in name and name not in ("", ".", "..")
    )


def _digests(column: Checked, num_shards: int) -> Digests:
    """The checksums of a list, or of one string of all their digits."""
    if isinstance(column.value, str):
        text = column.value
        _check_length(column, len(text) // (2 * Digests.BYTES), num_shards)
    else:
        _check_length(column, len(_elements(column)), num_shards)
        if set(map(type, column.value)) - {str} or set(map(len, column.value)) - {2 * Digests.BYTES}:
            raise _first_error(column, Checked.hex_digest)
        text = "".join(column.value)
    data = _unhexed(text)
    if len(data) != num_shards * Digests.BYTES:
        if isinstance(column.value, str):
            raise column.error("must be 32 lower-case hex digits a shard")
        raise _first_error(column, Checked.hex_digest)
    return Digests(data)


def _unhexed(text: str) -> bytes:
    """The bytes of lower-case hex digits; none where the text is anything else."""
    try:
        digits = text.encode("ascii")
        return b"" if np.any(np.frombuffer(digits, np.uint8) - np.uint8(ord("A")) < 6) else binascii.unhexlify(digits)
    except (UnicodeEncodeError, binascii.Error):
        return b""


def _counts(column: Checked) -> I64:
    counts = _elements(column)
    if isinstance(counts, np.ndarray):
        return counts
    try:
        numbers = np.array(counts, np.int64) if set(map(type, counts)) <= {int} else None
    except OverflowError:
        numbers = None
    if numbers is None or (len(numbers) and numbers.min() < 0):
        raise _first_error(column, Checked.integer)
    if sum(counts) > MAX_INTEGER:
        raise column.error("must add up to less than 2^63")
    return numbers


def _optional_counts(column: Checked, num_shards: int) -> I64:
    if column.value is None:
        return np.zeros(num_shards, np.int64)
    _check_length(column, len(_elements(column)), num_shards)
    return _counts(column)


def _pieces(column: Checked, samples: I64) -> tuple[I64, I64]:
    if column.value is None:
        return samples, np.arange(len(samples) + 1, dtype=np.int64)
    _check_length(column, len(_elements(column)), len(samples))
    counts = [_counts(item) for item in column.elements()]
    for item, piece_samples, total in zip(column.elements(), counts, samples.tolist(), strict=True):
        if int(piece_samples.sum()) != total or not len(piece_samples):
            raise item.error(f"must add up to the shard's {total} samples")
    return np.concatenate(counts or [np.zeros(0, np.int64)]), _starts([len(item) for item in counts])


def _starts(lengths: Sequence[int]) -> I64:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
