"""The samples of a run as columns, where their format allows it: what a batch takes of them is indexing.

Python's cost is then paid once a run: of small samples it is more than that of copying them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.formats.columns import I64

Objects = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Neighbouring samples of a piece, all of which have the same fields."""

    first: int
    """Number of the first one in its piece."""
    keys: list[str] | npt.NDArray[np.void]
    """Each sample's; or the characters of each, where all are ASCII of one length."""
    columns: Mapping[str, npt.NDArray[Any]]
    """Field -> numbers or arrays of one shape, (samples, ...); or objects, (samples,): all str, or all memoryviews; or
    byte strings of one length, (samples,) of the void type of that length."""


def objects(values: Iterable[Any], count: int) -> Objects:
    """An array of `count` values as they are."""
    return np.fromiter(values, np.object_, count)


def byte_strings(data: memoryview, starts: I64, lengths: I64) -> npt.NDArray[Any]:
    """The bytes from each start on, for at least one, as views of `data`: one array where they lie regularly."""
    steps, length = np.diff(starts), int(lengths[0])
    if length and np.all(lengths == length) and np.all(steps == steps[:1]):
        step = int(steps[0]) if len(steps) else length
        return np.ndarray((len(starts),), f"V{length}", data, int(starts[0]), (step,))
    ends = (starts + lengths).tolist()
    return objects((data[start:end] for start, end in zip(starts.tolist(), ends, strict=True)), len(starts))
