"""How one sample lies in an MDS shard: the lengths of the values that vary in length, then all values, by column."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.errors import DamagedError, DatasetError
from headrace.formats.fields import Field
from headrace.formats.mds.encodings import PICKLE, Decoder, Encoding, parse_encoding
from headrace.storage import quoted

KEY = "__key__"
MAX_KEY_BYTES = 1 << 16
_MAX_COLUMNS = 1 << 16
_MALFORMED = (ValueError, RecursionError, struct.error)
"""What decoders raise for malformed values; UnicodeDecodeError and JSONDecodeError are kinds of ValueError."""


class MalformedError(ValueError):
    """Bytes that no writer of MDS makes; the message goes on from the name of the file."""


class Columns:
    """The columns of a shard, sorted as they are stored. Safe to share by threads; not to be pickled."""

    def __init__(self, pairs: Sequence[tuple[str, str]], where: str) -> None:
        """`pairs` are name and encoding of each column; `where` is the shard's name, for messages.

        Raises DatasetError if there is an encoding that is not read.
        """
        self.pairs = tuple(pairs)
        names = [name for name, _ in self.pairs]
        if len(set(names)) != len(names) or not 1 <= len(names) <= _MAX_COLUMNS:
            raise DatasetError(f"{where} must have 1 to {_MAX_COLUMNS:,} columns of different names, got {names[:9]}")
        self._encodings = {name: _encoding(name, encoding, where) for name, encoding in self.pairs}
        self._head = struct.Struct(f"<{sum(one.size is None for one in self._encodings.values())}I")
        self._plan: list[tuple[str, int | None, Decoder | None]] = [
            (name, one.size, None if name == KEY else one.decode) for name, one in self._encodings.items()
        ]
        self.has_keys = KEY in self._encodings
        if self.has_keys and self._encodings[KEY].field.type not in ("str", "int"):
            raise DatasetError(f"{where}: the column {KEY} is of the encoding {self._encodings[KEY].name}, not str")

    @property
    def sizes(self) -> list[int | None]:
        """Bytes of each column's values; None where they vary."""
        return [encoding.size for encoding in self._encodings.values()]

    @property
    def fields(self) -> Mapping[str, Field]:
        """What samples have, by field name."""
        return {name: encoding.field for name, encoding in self._encodings.items() if name != KEY}

    def key_range(self, head: bytes, num_bytes: int) -> tuple[int, int]:
        """Where a sample's key lies in it, (0, 0) without a column of keys.

        `head` has its first bytes, `num_bytes` is its length. Raises MalformedError if its values do not fill it.
        """
        try:
            lengths = iter(self._head.unpack_from(head))
        except struct.error as err:
            raise MalformedError(f"has {num_bytes:,} bytes, too few for its columns") from err
        at, found = self._head.size, (0, 0)
        for _, size, decode in self._plan:
            end = at + (next(lengths) if size is None else size)
            if decode is None:
                found = at, end
            at = end
        if at != num_bytes:
            raise MalformedError(f"has {num_bytes:,} bytes, but values of {at:,}")
        if found[1] - found[0] > MAX_KEY_BYTES:
            raise MalformedError(f"has a key of {found[1] - found[0]:,} bytes, more than {MAX_KEY_BYTES:,}")
        return found

    def key(self, data: bytes) -> str:
        """The key that is stored as these bytes. Raises MalformedError."""
        try:
            key = str(self._encodings[KEY].decode(memoryview(data)))
            key.encode()
        except _MALFORMED as err:
            raise MalformedError(f"has a key that is not {self._encodings[KEY].name}: {_reason(err)}") from err
        return key

    def sample(self, data: memoryview, key: str) -> dict[str, Any]:
        """The sample with this key that lies in `data`. Raises DamagedError for values that a column cannot have."""
        sample: dict[str, Any] = {KEY: key}
        name = None
        try:
            lengths = iter(self._head.unpack_from(data))
            at = self._head.size
            for name, size, decode in self._plan:
                end = at + (next(lengths) if size is None else size)
                if decode is not None:
                    sample[name] = decode(data[at:end])
                at = end
        except _MALFORMED as err:
            raise DamagedError(f"sample {quoted(key)}: {self._misfit(name)}: {_reason(err)}; write it anew") from err
        if at != len(data):
            raise DamagedError(f"sample {quoted(key)} has {len(data):,} bytes, but values of {at:,}; write it anew")
        return sample

    def _misfit(self, name: str | None) -> str:
        if name is None:
            return "it is too short for its columns"
        return f"the column {quoted(name)} holds what is not {self._encodings[name].name}"


def _encoding(column: str, name: str, where: str) -> Encoding:
    if name == PICKLE:
        raise DatasetError(
            f"{where}: the column {quoted(column)} holds pickles ({PICKLE}), and unpickling would run code from the "
            "data: write the dataset again with json, ndarray or bytes for it"
        )
    try:
        return parse_encoding(name)
    except ValueError as err:
        raise DatasetError(
            f"{where}: the column {quoted(column)} cannot be read: {err}; write the dataset again with another"
        ) from err


def _reason(err: Exception) -> str:
    return " ".join(str(err).split()) or type(err).__name__
