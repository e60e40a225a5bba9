"""Columns of many values that cost little to hold and to pickle: no object a value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


class Strings:
    """A column of strings in two buffers: without an object each, a million of them are cheap to hold and pickle."""

    def __init__(self, starts: I64, text: npt.NDArray[np.uint8]) -> None:
        """`starts` has one more entry than there are strings: where the last one ends."""
        self.starts, self.text = starts, text
        self._starts, self._text = starts.data, text.data

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        """The column of these strings."""
        encoded = [string.encode() for string in strings]
        starts = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(text) for text in encoded], out=starts[1:])
        return cls(starts, np.frombuffer(b"".join(encoded), np.uint8))

    def __getitem__(self, i: int) -> str:
        return str(self._text[self._starts[i] : self._starts[i + 1]], "utf-8")

    def some(self, first: int, last: int) -> Iterator[str]:
        """Those from the first to the one before the last."""
        starts = self.starts[first : last + 1].tolist()
        base, text = starts[0], self.text[starts[0] : starts[-1]].tobytes()
        if text.isascii():  # then characters are bytes
            string = text.decode()
            return (string[start - base : end - base] for start, end in pairwise(starts))
        return (text[start - base : end - base].decode() for start, end in pairwise(starts))

    def column(self, first: int, last: int) -> list[str] | npt.NDArray[np.void]:
        """Those from the first to the one before the last; their characters, where all are ASCII of one length."""
        starts = self.starts[first : last + 1]
        lengths = np.diff(starts)
        if not len(lengths) or not lengths[0] or not np.all(lengths == lengths[0]) or not self._is_ascii:
            return list(self.some(first, last))
        return self.text[starts[0] : starts[-1]].view(f"V{lengths[0]}")

    @cached_property
    def _is_ascii(self) -> bool:
        return not np.any(self.text & 0x80)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[str]:
        text, starts = self.text.tobytes(), self.starts.tolist()
        return (text[start:end].decode() for start, end in pairwise(starts))

    def hashes(self) -> U64:
        """xxh3_64 of every string."""
        text = self._text
        hashes = (xxhash.xxh3_64_intdigest(text[start:end]) for start, end in pairwise(self.starts.tolist()))
        return np.fromiter(hashes, np.uint64, len(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return Strings, (self.starts, self.text)

    @property
    def nbytes(self) -> int:
        """Memory of both buffers, in bytes."""
        return self.starts.nbytes + self.text.nbytes


def numbered(stem: str, numbers: I64) -> list[str] | npt.NDArray[np.void]:
    """`stem:number` for each; their characters, where all are ASCII of one length. Numbers are at least 0, and rise."""
    listed = [f"{stem}:{number}" for number in numbers[[0, -1]].tolist()] if len(numbers) else []
    if len({len(key) for key in listed}) != 1 or not stem.isascii():
        return [f"{stem}:{number}" for number in numbers.tolist()]
    length = len(listed[0])
    characters = np.empty((len(numbers), length), np.uint8)
    characters[:] = np.frombuffer(listed[0].encode(), np.uint8)
    for at in range(length - 1, len(stem), -1):
        numbers, digits = np.divmod(numbers, 10)
        characters[:, at] = digits + ord("0")
    return characters.view(f"V{length}").ravel()


class Digests:
    """A column of 128-bit checksums; an entry is its 32 lower-case hex digits."""

    BYTES = 16
    MAX_LISTED = 1 << 16

    def __init__(self, data: bytes) -> None:
        """`data` has 16 bytes a checksum, in the order of its hex digits."""
        self.data = data

    @classmethod
    def of(cls, digests: Sequence[str]) -> Digests:
        """The column of these hex digits."""
        return cls(bytes.fromhex("".join(digests)))

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.data[i * self.BYTES : (i + 1) * self.BYTES].hex()

    def __len__(self) -> int:
        return len(self.data) // self.BYTES

    def to_json(self) -> list[str] | str:
        """Every entry; of more than 65,536 one string of all their digits, which is shorter and quicker to read."""
        text, width = self.data.hex(), 2 * self.BYTES
        return text if len(self) > self.MAX_LISTED else [text[at : at + width] for at in range(0, len(text), width)]
