"""The trainer's side of a cache of decoded samples: what was asked for, what came of it, and the memory, kept alive."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Sequence
from typing import Any

from headrace.dataset import Dataset, Joined
from headrace.errors import StorageError
from headrace.load.decoded.control import DecodedReading
from headrace.load.decoded.options import DecodedOptions, StorePlan, store_plan
from headrace.load.decoded.ram import hold_memory
from headrace.storage.cache.options import RAM
from headrace.transform import Op

_log = logging.getLogger("headrace.load")


class HeldCache:
    """The cache of one loader. Memory outlives loader processes that are replaced, and ends with `close`."""

    def __init__(
        self, options: DecodedOptions | None, dataset: Dataset | Joined, ops: Sequence[Op], *, in_workers: bool
    ) -> None:
        """`in_workers`: worker processes do the steps. Raises OptionError where what was asked for cannot be."""
        self._plan = store_plan(options, dataset, ops, in_workers=in_workers)
        self._began: int | None = None
        self._before = DecodedReading()
        self._now = DecodedReading()
        self._release: weakref.finalize[Any, Any] | None = None

    def plan(self, epoch: int, epochs: int | None, epoch_samples: int, samples_ahead: int) -> StorePlan | None:
        """What a loader process that begins in this epoch is to do; an iteration has so many epochs, None is endless.

        Samples come again if it has several, or once there is a second iteration: when more of it is made than the
        process makes ahead, unasked.
        """
        if self._plan is None:
            return None
        self._began = epoch if self._began is None else self._began
        if epochs != 1:
            return self._plan
        return self._plan.beginning_at((self._began + 1) * epoch_samples + samples_ahead)

    def note(self, reading: DecodedReading | None) -> None:
        """Take down what the loader process counted; a decision of its is logged."""
        if reading is None:
            return
        if reading.why and reading.why != self._now.why:
            _log.info("%s", reading.why)
        self._now = reading
        if reading.place == RAM and self._release is None:
            self._hold()

    def process_ended(self) -> None:
        """The next readings are another process's, which counts from 0."""
        self._before, self._now = self._sum, DecodedReading(self._now.place, self._now.why)

    def meters(self) -> dict[str, Any]:
        """What it gave, over all processes."""
        return self._sum.as_dict()

    def close(self) -> None:
        """Let go of the memory."""
        if self._release is not None:
            self._release()
            self._release = None

    @property
    def _sum(self) -> DecodedReading:
        return self._now.after(self._before)

    def _hold(self) -> None:
        assert self._plan is not None  # something is kept
        try:
            fd = hold_memory(self._plan.name, self._plan.num_samples)
        except StorageError as err:  # it works without: a process that is replaced begins anew
            _log.warning("%s", err)
            return
        self._release = weakref.finalize(self, os.close, fd)
