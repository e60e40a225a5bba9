"""What a worker process does that transforms rows: they come as raw bytes, and tensor fields go into the slot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from headrace.errors import TransformError
from headrace.load.channel import dumps
from headrace.load.job import Array
from headrace.load.marks import Lane
from headrace.load.rows import Chain, Made, Row, make_rows
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

    def answer(self, order: RowOrder, slot: memoryview, lane: Lane) -> bytes:
        """Make the rows; a pickled list of `Made`."""
        if not self._is_prepared:
            prepare_worker()
            self._is_prepared = True
        arrays = {
            name: np.ndarray(place.shape, place.dtype, slot, place.offset) for name, place in order.places.items()
        }
        return _reply(make_rows(self.chain, [_as_in_the_loader(row) for row in order.rows], arrays, lane))


def _as_in_the_loader(row: Row) -> Row:
    """Stored bytes as views, which is what functions get in the loader process's own threads."""
    sample = {name: memoryview(value) if isinstance(value, bytes) else value for name, value in row.sample.items()}
    return Row(row.number, row.epoch, row.position, sample)


def _reply(made: list[Made]) -> bytes:
    try:
        return dumps(made)
    except Exception:
        return dumps([_portable(one) for one in made])


def _portable(made: Made) -> Made:
    try:
        dumps(made)
    except Exception as err:  # what a user's function returns may be anything
        reason = f"its values cannot be sent to the loader: {type(err).__name__}: {err}"
        return Made(made.key, None, TransformError(f"sample {made.key!r}: {reason}"))
    return made
