"""Rows of one size in many arrays: taken by their addresses, all of a batch at once.

A batch has few rows of each run, so what an array operation costs would be paid every few rows. numpy takes the rows of
one array quickly wherever they lie: of an array, then, that begins with the first of the arrays and ends with the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

_MOST_BYTES = 1 << 63
"""numpy makes no array of more, even where rows overlap: wide rows in memory that lies far apart would be one."""
_AT_ONCE_BYTES = 256 << 10
"""Rows are copied twice, the first time to where the processor's cache still has them the second time."""


class RowsAt:
    """An array whose rows are of one size and each in one piece, (rows, ...)."""

    __slots__ = ("address", "array", "dtype", "shape", "step", "width")

    def __init__(self, array: NDArray[Any]) -> None:
        """Rows that are not in one piece are copied. They have at least a byte."""
        if len(array) and not array[0].flags.c_contiguous:
            array = np.ascontiguousarray(array)
        self.array, self.dtype, self.shape = array, array.dtype, array.shape[1:]
        self.width = array.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        self.address, self.step = array.__array_interface__["data"][0], array.strides[0]

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: int) -> memoryview:
        """A row's bytes."""
        return memoryview(self.array[row : row + 1].tobytes())


class _Span:
    """Memory from an address on as overlapping rows, one beginning at every byte."""

    def __init__(self, address: int, num_rows: int, width: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address, True),
            "shape": (num_rows,),
            "strides": (1,),
            "typestr": f"|V{width}",
        }


def copy_rows(arrays: Sequence[RowsAt], which: I64, at: I64, target: NDArray[Any], rows: I64 | slice) -> None:
    """Copy row `at[i]` of `arrays[which[i]]` to the i-th of these rows of the target, for all i.

    The arrays have one dtype and one shape of rows; the target's dtype may be another, to which numpy casts. Raises
    IndexError for rows that an array does not have: what lies there is other memory.
    """
    first = arrays[0]
    counts = np.fromiter(map(len, arrays), np.int64, len(arrays))
    if np.any((at < 0) | (at >= counts[which])):
        raise IndexError(
            f"rows must lie in their arrays: got {int(at.min())} to {int(at.max())} of {int(counts.min())}"
        )
    begins = np.fromiter((array.address for array in arrays), np.int64, len(arrays))
    steps = np.fromiter((array.step for array in arrays), np.int64, len(arrays))
    lowest = int(begins.min())
    offsets = (begins - lowest)[which] + steps[which] * at
    if not first.width:
        return
    num_rows = int(offsets.max()) + 1
    if num_rows * first.width >= _MOST_BYTES:
        _copy_by_array(arrays, which, at, target, rows)
        return
    span = np.asarray(_Span(lowest, num_rows, first.width))
    at_once = max(1, _AT_ONCE_BYTES // first.width)
    for begin in range(0, len(offsets), at_once):
        part = slice(begin, min(begin + at_once, len(offsets)))
        taken = span[offsets[part]].view(first.dtype).reshape(-1, *first.shape)
        target[part if isinstance(rows, slice) else rows[part]] = taken


def _copy_by_array(arrays: Sequence[RowsAt], which: I64, at: I64, target: NDArray[Any], rows: I64 | slice) -> None:
    places = np.arange(len(which)) if isinstance(rows, slice) else rows
    for number in np.unique(which).tolist():
        here = which == number
        target[places[here]] = arrays[number].array[at[here]]
