"""Several datasets as one, behind each other: what a mixture reads from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import xxhash

from headrace.dataset.dataset import Dataset
from headrace.dataset.pieces import Pieces
from headrace.errors import OptionError
from headrace.formats import Field, ShardIndex
from headrace.storage import File


class Joined:
    """Datasets one behind the other, to be read as a `Dataset` is. Safe to call from several threads."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = tuple(parts)
        self._piece_starts = [0, *accumulate(len(part.pieces) for part in parts)]
        self._shard_starts = [0, *accumulate(len(part.manifest.shards) for part in parts)]
        self.pieces = Pieces.joined([part.pieces for part in parts], self._shard_starts[:-1])

    def __len__(self) -> int:
        return int(self.pieces.sample_starts[-1])

    def __getitem__(self, i: int) -> dict[str, Any]:
        for part in self.parts:
            if i < len(part):
                return part[i]
            i -= len(part)
        raise IndexError(i)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Joined) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __repr__(self) -> str:
        return f"Joined({list(self.parts)!r})"

    @property
    def url(self) -> str:
        """Where the datasets lie."""
        return " and ".join(dict.fromkeys(part.url for part in self.parts))

    @property
    def is_remote(self) -> bool:
        """Whether some are read over a network."""
        return any(part.is_remote for part in self.parts)

    @property
    def least_block_bytes(self) -> int:
        """As of a `Dataset`: the largest of theirs."""
        return max(part.least_block_bytes for part in self.parts)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that say which datasets, and in which order."""
        return xxhash.xxh3_128_hexdigest(" ".join(part.fingerprint for part in self.parts).encode())

    @property
    def schema(self) -> Mapping[str, Field]:
        """The fields that samples of all of them have. Raises OptionError where their types differ."""
        schema = dict(self.parts[0].schema)
        for part in self.parts[1:]:
            schema = {name: _same(name, field, part) for name, field in schema.items() if name in part.schema}
        return schema

    def piece(self, piece: int) -> ShardIndex:
        """The index of a piece, verified."""
        k = bisect_right(self._piece_starts, piece) - 1
        return self.parts[k].piece(piece - self._piece_starts[k])

    def open_shard(self, shard: int) -> File:
        """A shard, open for reading. Raises DamagedError if it is missing."""
        k = bisect_right(self._shard_starts, shard) - 1
        return self.parts[k].open_shard(shard - self._shard_starts[k])

    def shard_name(self, shard: int) -> str:
        """The name of a shard within its dataset, and where that lies."""
        k = bisect_right(self._shard_starts, shard) - 1
        return f"{self.parts[k].url}/{self.parts[k].shard_name(shard - self._shard_starts[k])}"


def _same(name: str, field: Field, part: Dataset) -> Field:
    other = part.schema[name]
    if (field.type, field.dtype) != (other.type, other.dtype):
        raise OptionError(
            f"datasets of a mixture must give a field one type: {name!r} is {other.dtype or other.type} in {part.url}, "
            f"{field.dtype or field.type} in others; leave it out (headrace.open(fields=...)), or repack"
        )
    return field.merged(other)
