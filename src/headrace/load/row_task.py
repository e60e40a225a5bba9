"""What a worker process does that transforms rows: they come as raw bytes, and tensor fields go into the slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.errors import TransformError
from headrace.load.channel import dumps
from headrace.load.job import Array
from headrace.load.marks import Lane
from headrace.load.rows import Chain, Made, Row, make_rows
from headrace.load.slots import Slot
from headrace.transform import prepare_worker


class RowOrder(NamedTuple):
    """Rows to make."""

    rows: list[Row]
    places: dict[str, Array]
    """Where the tensor fields of the batch lie in its slot."""


@dataclass
class RowTask:
    """It travels to the process."""

    chain: Chain
    _is_prepared: bool = field(default=False, init=False)

    @property
    def num_lanes(self) -> int:
        """One thread transforms."""
        return 1

    def answer(self, order: RowOrder, slot: Slot, lanes: Sequence[Lane]) -> bytes:
        """Make the rows; a pickled list of `Made`."""
        if not self._is_prepared:
            prepare_worker()
            self._is_prepared = True
        arrays = arrays_in(slot, order.places)
        return _reply(make_rows(self.chain, [_as_in_the_loader(row) for row in order.rows], arrays, lanes[0]))


def arrays_in(slot: Slot, places: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """The arrays at these places."""
    view = slot.view()
    return {name: np.ndarray(place.shape, place.dtype, view.data, place.offset) for name, place in places.items()}


def _as_in_the_loader(row: Row) -> Row:
    """Stored bytes as views, which is what functions get in the loader process's own threads."""
    if row.sample is None:
        return row
    sample = {name: memoryview(value) if isinstance(value, bytes) else value for name, value in row.sample.items()}
    return replace(row, sample=sample)


def _reply(made: list[Made]) -> bytes:
    try:
        return dumps(made)
    except Exception:
        return dumps([portable(one) for one in made])


def portable(made: Made) -> Made:
    """What can be sent of it: what a user's function returned may be anything."""
    try:
        dumps(made)
    except Exception as err:
        reason = f"its values cannot be sent to the loader: {type(err).__name__}: {err}"
        return Made(made.key, None, TransformError(f"sample {made.key!r}: {reason}"))
    return made
