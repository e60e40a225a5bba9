"""Writing token shards: the documents' tokens one behind the other, little-endian, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headrace.errors import SourceError
from headrace.formats.columns import Strings
from headrace.formats.fields import Field
from headrace.formats.shard import Encoded, ShardWriter
from headrace.formats.tokens.index import DTYPES, FIELD, TokensIndex
from headrace.formats.tokens.scan import BlockSums
from headrace.storage import quoted


class TokensWriter(ShardWriter):
    """Writes a token shard. The first document of the dataset decides the type of its tokens."""

    def __init__(self, path: Path, fields: Mapping[str, Field]) -> None:
        super().__init__(path, fields)
        self._dtype = fields[FIELD].dtype if FIELD in fields else None
        self._keys: list[str] = []
        self._ends: list[int] = [0]
        self._sums = BlockSums()

    def _add(self, sample: Encoded) -> None:
        data = self._converted(sample)
        self._keys.append(sample.key)
        self._write(data)
        self._ends.append(self.num_bytes // np.dtype(self._dtype).itemsize)
        self._sums.add(data)

    def _added_bytes(self, sample: Encoded) -> int:
        have, want = np.dtype(sample.fields[FIELD].dtype), np.dtype(self._dtype or sample.fields[FIELD].dtype)
        return len(sample.blob) // have.itemsize * want.itemsize

    def _index(self) -> TokensIndex:
        ends = np.array(self._ends, np.int64)
        documents = Strings.of(self._keys), ends[:-1].copy(), np.diff(ends)
        return TokensIndex(self._dtype or DTYPES[0], 0, *documents, self._sums.blocks())

    def _converted(self, sample: Encoded) -> bytes:
        dtype = sample.fields[FIELD].dtype or DTYPES[0]
        self._dtype = self._dtype or dtype
        if dtype == self._dtype:
            return sample.blob
        tokens = np.frombuffer(sample.blob, np.dtype(dtype).newbyteorder("<"))
        if self._dtype == "uint16" and tokens.size and int(tokens.max()) > np.iinfo(np.uint16).max:
            raise SourceError(
                f"sample {quoted(sample.key)} has the token {int(tokens.max())}, but the samples before it were "
                "uint16; give every sample's tokens as uint32"
            )
        return tokens.astype(np.dtype(self._dtype).newbyteorder("<")).tobytes()


def encode_tokens(sample: Mapping[str, Any]) -> Encoded:
    """A sample as a run of tokens: uint16 if its array's type holds no more, else uint32.

    Raises SourceError unless the sample has the field `tokens` alone, a flat array or list of whole numbers in range.
    """
    key = sample["__key__"]
    names = [name for name in sample if name != "__key__"]
    if names != [FIELD]:
        raise SourceError(
            f"sample {quoted(key)} has the fields {names}; the format tokens holds the field {FIELD!r} alone: "
            "make it in the transform, an array of whole numbers"
        )
    if isinstance(sample[FIELD], str | bytes | bytearray | memoryview):
        raise SourceError(
            f"sample {quoted(key)}: tokens are {type(sample[FIELD]).__name__}, not an array of whole numbers; "
            "for bytes as tokens use numpy.frombuffer(data, numpy.uint8)"
        )
    try:
        tokens = np.asarray(sample[FIELD])
    except ValueError as err:  # lists of unequal length
        raise SourceError(f"sample {quoted(key)}: tokens must be a flat array of whole numbers ({err})") from err
    if tokens.size == 0 and not isinstance(sample[FIELD], np.ndarray):
        tokens = tokens.astype(np.uint32)  # an empty list has no type of its own
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise SourceError(
            f"sample {quoted(key)}: tokens must be a flat array of whole numbers, got {tokens.dtype} of shape "
            f"{tokens.shape}"
        )
    dtype = "uint16" if np.can_cast(tokens.dtype, np.uint16) else "uint32"
    most = np.iinfo(dtype).max
    if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) > most):
        raise SourceError(
            f"sample {quoted(key)}: tokens must be from 0 to {most}, got {tokens.min()} to {tokens.max()}"
        )
    blob = tokens.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    return Encoded(key, blob, {FIELD: Field("array", dtype)})
